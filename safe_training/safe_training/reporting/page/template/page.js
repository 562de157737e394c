'use strict';
// Draws the rollouts of a report, with curve.js. All text reaches the page as text, never as markup.
(() => {
  const page = JSON.parse(document.getElementById('data').textContent);
  const rollouts = page.rollouts;
  const bands = page.bands.map((edge) => edge.map((value) => (value === null ? Infinity : value)));
  const verdicts = ['miss', 'false alarm', 'detection', 'quiet'];
  const marks = { miss: '✗', 'false alarm': '!', detection: '✓', quiet: '·' };
  const $ = (id) => document.getElementById(id);
  const list = $('list'), chart = $('chart'), slider = $('step'), video = $('video');
  const number = curve.number;

  let shown = [];       // rollout numbers, as filtered and sorted
  let chosen = -1;      // rollout number
  let step = 0;
  let blobUrl = null;
  let drawn = null;     // the curve of the chosen rollout

  // ---- list ----------------------------------------------------------------------------------
  function fill(select, values) {
    for (const value of values) select.add(new Option(value, value));
  }

  const filters = {
    'filter-task': (r, v) => r.task === v,
    'filter-outcome': (r, v) => (r.failed ? 'failure' : 'success') === v,
    'filter-part': (r, v) => r.part === v,
    'filter-verdict': (r, v) => r.verdict === v,
    'filter-video': (r) => r.video !== null,
    'filter-text': (r, v) => `${r.id} ${r.task}`.toLowerCase().includes(v.toLowerCase()),
  };
  const highest = (r) => r.scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const orders = {
    order: () => 0,
    verdict: (a, b) => verdicts.indexOf(a.verdict) - verdicts.indexOf(b.verdict),
    task: (a, b) => (a.task < b.task ? -1 : a.task > b.task ? 1 : 0),
    highest: (a, b) => b.highest - a.highest,
    alarm: (a, b) => (a.alarm ?? Infinity) - (b.alarm ?? Infinity) || 0,
    length: (a, b) => b.scores.length - a.scores.length,
  };

  const lazily = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      lazily.unobserve(entry.target);
      sparkline(entry.target, rollouts[Number(entry.target.dataset.number)]);
    }
  }, { root: list, rootMargin: '200px' });

  function sparkline(canvas, rollout) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = 96 * ratio; canvas.height = 36 * ratio;
    canvas.dataset.drawn = 'yes';
    const context = canvas.getContext('2d');
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const longest = page.longest;
    const x = (t) => (2 + 92 * t / Math.max(1, longest - 1)) * ratio;
    const y = (v) => (33 - 30 * (v - page.low) / (page.high - page.low)) * ratio;
    const line = (values, stroke, width, dash) => {
      context.beginPath(); context.setLineDash(dash); context.strokeStyle = stroke; context.lineWidth = width * ratio;
      let pen = false;
      values.forEach((v, t) => {
        if (!Number.isFinite(v)) { pen = false; return; }
        if (pen) context.lineTo(x(t), y(v)); else context.moveTo(x(t), y(v));
        pen = true;
      });
      context.stroke();
    };
    line(rollout.band, colour('--band'), 1, [3 * ratio, 2 * ratio]);
    line(rollout.scores, colour(rollout.failed ? '--failure' : '--success'), 1.4, []);
    if (rollout.alarm !== null) {
      context.fillStyle = colour('--ink');
      context.fillRect(x(rollout.alarm) - ratio, y(rollout.scores[rollout.alarm]) - 4 * ratio, 3 * ratio, 8 * ratio);
    }
  }

  function update() {
    const active = Object.entries(filters).map(([id, test]) => [$(id).value, test]).filter(([value]) => value);
    shown = rollouts.map((_, i) => i).filter((i) => active.every(([value, test]) => test(rollouts[i], value)));
    const compare = orders[$('sort').value];
    shown.sort((a, b) => compare(rollouts[a], rollouts[b]) || a - b);
    const rows = document.createDocumentFragment();
    lazily.disconnect();
    shown.forEach((i, place) => {
      const rollout = rollouts[i];
      const row = document.createElement('div');
      row.className = 'row'; row.id = `rollout-${i}`;
      row.setAttribute('role', 'option');
      row.setAttribute('aria-selected', 'false');
      row.setAttribute('aria-setsize', shown.length);
      row.setAttribute('aria-posinset', place + 1);
      const id = document.createElement('span'); id.className = 'id'; id.textContent = rollout.id; id.title = rollout.id;
      const what = document.createElement('span'); what.className = 'what';
      what.textContent = `${marks[rollout.verdict]} ${rollout.verdict}` +
        (rollout.alarm === null ? '' : ` at step ${rollout.alarm}`) + `, ${rollout.part}, ${rollout.scores.length} steps` +
        (rollout.video ? ', video' : '');
      const canvas = document.createElement('canvas');
      canvas.setAttribute('aria-hidden', 'true'); canvas.dataset.number = i;
      row.append(id, what, canvas); rows.append(row);
      lazily.observe(canvas);
    });
    list.replaceChildren(rows);
    $('count').textContent = `${shown.length} of ${rollouts.length} rollouts`;
    if (!shown.length) { choose(-1); return; }
    choose(shown.includes(chosen) ? chosen : shown[0], true);
  }

  function choose(i, again) {
    const before = $(`rollout-${chosen}`);
    if (before) before.setAttribute('aria-selected', 'false');
    $('detail').hidden = i < 0;
    if (i < 0) {
      chosen = -1; list.removeAttribute('aria-activedescendant'); showVideo(null); return;
    }
    const row = $(`rollout-${i}`);
    row.setAttribute('aria-selected', 'true');
    list.setAttribute('aria-activedescendant', row.id);
    const top = row.offsetTop - list.offsetTop - list.clientTop;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + row.offsetHeight - list.clientHeight;
    if (again && i === chosen) return;
    chosen = i;
    const rollout = rollouts[i];
    $('name').textContent = rollout.id;
    $('facts').textContent = [`task ${rollout.task}`, rollout.instruction && `“${rollout.instruction}”`,
      rollout.failed ? 'failure' : 'success', `part ${rollout.part}`, `${rollout.scores.length} steps`,
      rollout.verdict + (rollout.alarm === null ? '' : `, first alarm at step ${rollout.alarm}`),
      rollout.failure !== null && `failure annotated at step ${rollout.failure}`].filter(Boolean).join(' · ');
    slider.max = rollout.scores.length - 1;
    draw(rollout);
    showVideo(rollout.video);
    setStep(0, 'choice');
  }

  list.addEventListener('click', (event) => {
    const row = event.target.closest('.row');
    if (row) choose(Number(row.id.slice('rollout-'.length)));
  });
  list.addEventListener('keydown', (event) => {
    const at = shown.indexOf(chosen);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 10, PageUp: at - 10, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined || !shown.length) return;
    event.preventDefault();
    choose(shown[Math.min(shown.length - 1, Math.max(0, to))]);
  });

  // ---- curve ---------------------------------------------------------------------------------
  function draw(rollout) {
    const n = rollout.scores.length;
    drawn = curve.draw(chart, {
      scores: rollout.scores, band: rollout.band.slice(0, n), alarm: rollout.alarm, failure: rollout.failure,
      kind: rollout.failed ? 'failure' : 'success',
      label: `Score over ${n} policy steps, highest ${number(rollout.highest)}; ` +
        (rollout.alarm === null ? 'no alarm' : `first alarm at step ${rollout.alarm}`),
    });
  }

  function setStep(to, from) {
    const rollout = rollouts[chosen];
    step = Math.min(rollout.scores.length - 1, Math.max(0, to));
    drawn.moveCursor(step);
    if (from !== 'slider') slider.value = step;
    const alarmed = rollout.alarm !== null && step >= rollout.alarm;
    const text = `step ${step} of ${rollout.scores.length}: score ${number(rollout.scores[step])}, band ${number(rollout.band[step])}` +
      (alarmed ? `, alarm since step ${rollout.alarm}` : '');
    $('reading').textContent = text;
    $('reading').classList.toggle('alarm', alarmed);
    slider.setAttribute('aria-valuetext', text);
    video.classList.toggle('alarm', alarmed);
    if (from !== 'video') seek();
  }

  slider.addEventListener('input', () => setStep(Number(slider.value), 'slider'));
  const pick = (event) => setStep(drawn.indexAt(event), 'chart');
  chart.addEventListener('pointerdown', (event) => { chart.setPointerCapture(event.pointerId); pick(event); });
  chart.addEventListener('pointermove', (event) => { if (event.buttons) pick(event); });

  // ---- video ---------------------------------------------------------------------------------
  // When each step begins in the video, never after its end: a step that it does not reach is its last moment.
  function times() {
    const rollout = rollouts[chosen];
    const starts = rollout.video.times ?? rollout.scores.map((_, t) => t * video.duration / rollout.scores.length);
    return starts.map((time) => Math.min(time, video.duration));
  }

  function playable() {
    const current = chosen >= 0 && rollouts[chosen].video;
    // A recorder may leave out how long its video is: steps can be placed in it only where their times are known.
    return current && video.duration > 0 && (current.times !== null || video.duration < Infinity);
  }

  function stepShown(starts) {
    let at = 0;
    while (at + 1 < starts.length && starts[at + 1] <= video.currentTime + 1e-4) at += 1;
    return at;
  }

  function seek() {
    if (!playable()) return;
    const starts = times();
    // Steps may share a frame. To seek within the last one would let Chromium jump to the end.
    if (starts[stepShown(starts)] === starts[step]) return;
    // A little past the beginning of the frame, so that rounding does not show the one before.
    video.currentTime = Math.min(starts[step] + 0.002, video.duration);
  }

  // Goes by where the video is, whoever sent it there: a seek of the page may be overtaken by one of its reader.
  function follow() {
    if (!playable() || video.seeking) return;
    const starts = times();
    const at = stepShown(starts);
    // Steps that begin together cannot be told apart by the time: the chosen one of them stays.
    if (starts[at] !== starts[step]) setStep(at, 'video');
  }

  function showVideo(source) {
    video.pause(); video.removeAttribute('src'); video.load();
    if (blobUrl) { URL.revokeObjectURL(blobUrl); blobUrl = null; }
    $('video-box').hidden = source === null;
    document.querySelector('.views').classList.toggle('alone', source === null);
    $('video-note').textContent = '';
    if (source === null) return;
    if (source.embedded) {
      const bytes = Uint8Array.from(atob($(source.embedded).textContent), (c) => c.charCodeAt(0));
      blobUrl = URL.createObjectURL(new Blob([bytes], { type: source.type }));
      video.src = blobUrl;
    } else {
      video.src = source.path;
      $('video-note').textContent = `This video is not in this page. The page reads the file ${decodeURI(source.path)}.`;
    }
    if (source.note) $('video-note').textContent += ` ${source.note}`;
  }

  video.addEventListener('loadedmetadata', seek);
  video.addEventListener('seeked', follow);
  video.addEventListener('timeupdate', follow);
  video.addEventListener('play', function tick() {
    follow();
    if (!video.paused && !video.ended) requestAnimationFrame(tick);
  });
  video.addEventListener('error', () => {
    if (!video.getAttribute('src')) return;
    $('video-note').textContent = 'This video cannot be shown. Either the file does not exist, or this browser does not play its format. ' +
      'Most browsers play VP9 and H.264 in mp4 files.';
  });

  // ---- start ---------------------------------------------------------------------------------
  for (const rollout of rollouts) {
    rollout.highest = highest(rollout);
    rollout.band = bands[rollout.band];
  }
  const distinct = (name) => [...new Set(rollouts.map((r) => r[name]))];
  fill($('filter-task'), distinct('task').sort());
  fill($('filter-part'), distinct('part'));
  $('filters').addEventListener('input', update);
  $('filters').addEventListener('submit', (event) => event.preventDefault());
  $('filters').addEventListener('reset', () => setTimeout(update));
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', update);
  if (!rollouts.some((r) => r.video)) $('filter-video').parentElement.hidden = true;
  update();
  document.documentElement.dataset.ready = 'yes';
})();
