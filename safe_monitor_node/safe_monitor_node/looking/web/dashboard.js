'use strict';
// Shows robots live. All text reaches the page as text, never as markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const cards = new Map();  // name of a robot -> what is known and its elements
  const outcomes = [['✓ Success', 1], ['✖ Failure', 2], ['Withdraw', 0]];
  const urgency = ['danger', 'caution', 'unknown', 'ok'];
  const MANY = 12, LATE = 3000, RENEW = 60000, ROOM = 20;
  let history = 600, labels = false, heard = 0, source = null;

  const visible = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const card = cards.get(entry.target.dataset.robot);
      if (!card) continue;
      card.visible = entry.isIntersecting;
      if (card.visible && card.dirty) draw(card);
    }
  }, { rootMargin: '100px' });

  function make(name) {
    const root = $('card').content.firstElementChild.cloneNode(true);
    const part = (selector) => root.querySelector(selector);
    const card = { name, root, points: [], facts: null, visible: true, dirty: true,
      mark: part('.mark'), word: part('.word'), reason: part('.reason'), facts_line: part('.facts'),
      value: part('.score-value'), of: part('.of'), curve: part('.curve'), labels: part('.labels'),
      episodes: part('.episodes'), answer: part('.answer') };
    root.dataset.robot = name;
    part('h2').textContent = name;
    cards.set(name, card);
    visible.observe(root);
    return card;
  }

  // ---- one robot -----------------------------------------------------------------------------
  function take(row) {
    const card = cards.get(row.name) ?? make(row.name);
    if (row.restart) card.points = [];
    if (row.restart || row.points.length) card.dirty = true;
    card.points.push(...row.points);
    if (card.points.length > history) card.points.splice(0, card.points.length - history);
    if (row.facts) {
      card.facts = row.facts;
      card.dirty = true;
      show(card);
    }
    const step = card.points.length ? card.points.at(-1)[0] : null;
    card.value.textContent = row.score;
    card.of.textContent = `score, band ${row.threshold}`;
    const age = row.age === null ? 'no score yet' : `${row.age.toFixed(1)} s ago`;
    card.facts_line.textContent = [
      card.facts.episode.shown && `episode ${card.facts.episode.shown}`, step !== null && `step ${step}`,
      row.rate === null ? 'no rate' : `${row.rate.toFixed(1)} Hz`, age, card.facts.detector].filter(Boolean).join(' · ');
    if (card.dirty && card.visible) draw(card);
  }

  function show(card) {
    const facts = card.facts;
    card.root.dataset.severity = facts.severity;
    card.root.classList.toggle('gone', facts.word === 'GONE');
    card.mark.textContent = facts.mark;
    card.word.textContent = facts.word;
    card.reason.textContent = facts.reason + (facts.advice ? ` (advice: ${facts.advice})` : '');
    card.labels.hidden = !labels;
    const known = [['running', facts.episode], ['before', facts.previous]].filter(([, e]) => e.shown);
    // The buttons keep their places while the episodes are the same: nobody presses what has just moved.
    const key = JSON.stringify(known);
    if (card.known === key) return;
    card.known = key;
    card.episodes.replaceChildren(...known.map(([which, episode]) => episodeRow(card, which, episode)));
  }

  function episodeRow(card, which, episode) {
    const row = document.createElement('div');
    row.className = 'episode';
    const id = document.createElement('span');
    id.className = 'id';
    id.textContent = which === 'running' ? `now: ${episode.shown}` : `before: ${episode.shown}`;
    row.append(id);
    for (const [text, outcome] of outcomes) {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = text;
      button.setAttribute('aria-label', `${text}: episode ${episode.shown} of ${card.name}`);
      button.disabled = !episode.whole;
      button.addEventListener('click', () => label(card, episode.id, outcome));
      row.append(button);
    }
    return row;
  }

  async function label(card, episode, outcome) {
    card.answer.textContent = 'Labelling';
    try {
      const response = await fetch('label', { method: 'POST', headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ robot: card.name, episode, outcome }) });
      if (!response.ok) throw new Error(await response.text());
      const answer = await response.json();
      card.answer.textContent = `${answer.success ? '✓' : '✖ not labelled:'} ${answer.message}`;
    } catch (error) {
      card.answer.textContent = `✖ not labelled: ${error.message}`;
    }
  }

  function draw(card) {
    card.dirty = false;
    const points = card.points;
    if (!points.length) { card.curve.replaceChildren(); return; }
    const first = points[0][0], n = points.length;
    const alarm = card.facts.alarm === null ? -1 : points.findIndex(([step]) => step === card.facts.alarm);
    const alarmed = card.facts.word === 'ALARM';
    curve.draw(card.curve, {
      scores: points.map(([, score]) => score), band: points.map(([, , threshold]) => threshold),
      first, steps: Math.min(history, Math.ceil((n + 1) / ROOM) * ROOM), alarm: alarm < 0 || points[alarm][1] === null ? null : alarm,
      kind: alarmed ? 'failure' : 'success',
      label: `Score of the last ${n} policy steps of ${card.name}; ${alarmed ? 'alarm' : 'no alarm'}`,
    });
  }

  // ---- all robots ----------------------------------------------------------------------------
  function arrange() {
    const order = [...cards.values()];
    const rank = (card) => urgency.indexOf(card.facts.severity);
    const byName = (a, b) => a.name.localeCompare(b.name, 'en', { numeric: true });
    order.sort($('order').value === 'urgent' ? (a, b) => rank(a) - rank(b) || byName(a, b) : byName);
    const box = $('robots');
    order.forEach((card, place) => {
      if (box.children[place] !== card.root) box.insertBefore(card.root, box.children[place] ?? null);
    });
    box.classList.toggle('many', order.length > MANY);
    $('none').hidden = order.length > 0;
    const counts = new Map();
    for (const card of [...order].sort((a, b) => rank(a) - rank(b))) counts.set(card.facts.word, (counts.get(card.facts.word) ?? 0) + 1);
    const states = [...counts].map(([word, count]) => `${count} ${word}`).join(', ');
    const summary = `${order.length} ${order.length === 1 ? 'robot' : 'robots'}${states ? `: ${states}` : ''}`;
    if ($('summary').textContent !== summary) $('summary').textContent = summary;
    document.title = states ? `${states} · SAFE` : 'SAFE';
  }

  function onEvent(message) {
    const event = JSON.parse(message.data);
    heard = performance.now();
    setLost(false);
    history = event.history;
    labels = event.labels;
    const names = new Set(event.robots.map((row) => row.name));
    for (const [name, card] of cards) {
      if (names.has(name)) continue;
      visible.unobserve(card.root);
      card.root.remove();
      cards.delete(name);
    }
    event.robots.forEach(take);
    arrange();
    document.documentElement.dataset.ready = 'yes';
  }

  // ---- the connection ------------------------------------------------------------------------
  function setLost(lost) {
    $('lost').hidden = !lost;
    document.body.classList.toggle('lost', lost);
  }

  function connect() {
    source = new EventSource('events');
    source.onmessage = onEvent;
    source.onerror = () => {
      setLost(true);
      if (source.readyState !== EventSource.CLOSED) return;  // the browser itself tries again
      setTimeout(async () => {
        const page = await fetch('./').catch(() => null);
        if (page && page.status === 401) location.reload(); else connect();
      }, 2000);
    };
  }

  // The server ends old streams, because it cannot see that a browser has stopped to read.
  setInterval(() => { if (source.readyState === EventSource.OPEN) { source.close(); connect(); } }, RENEW);
  // A server that hangs closes nothing: what is shown becomes old all the same.
  setInterval(() => { if (heard && performance.now() - heard > LATE) setLost(true); }, 500);
  // A wall screen without a keyboard opens /#urgent.
  if (location.hash === '#urgent') $('order').value = 'urgent';
  $('order').addEventListener('change', arrange);
  connect();
})();
