'use strict';
// Draws failure scores against their band as SVG, for the report page and for the dashboard.
const curve = (() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const W = 640, H = 300, LEFT = 64, RIGHT = 12, TOP = 16, BOTTOM = 46;

  function element(name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function number(value) {
    return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : 'none';
  }

  // A round distance between ticks, so that about `count` of them fit into a span.
  function every(span, count) {
    const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
    return power * [1, 2, 5, 10].find((m) => raw <= m * power * 1.0001);
  }

  // The stretches of finite values, each a list of [index, value].
  function stretches(values) {
    let stretch = [];
    const all = [stretch];
    values.forEach((v, t) => {
      if (Number.isFinite(v)) stretch.push([t, v]);
      else if (stretch.length) all.push(stretch = []);
    });
    return all.filter((points) => points.length);
  }

  // Replaces what is in `place` by a curve.
  //   scores, band  one number for each step; what is not finite is not drawn
  //   first         number of the first step (0)
  //   steps         number of steps that the width has room for (all)
  //   alarm, failure  index of the step with the alarm, and of the annotated failure; null without
  //   kind          class of the line of scores: 'success' or 'failure', or a class of the page
  //   label         what a screen reader says
  // Returns moveCursor(index), and indexAt(event) of a pointer.
  function draw(place, { scores, band, first = 0, steps = scores.length, alarm = null, failure = null, kind, label }) {
    const last = Math.max(1, steps - 1);
    const values = [...scores, ...band, 0].filter(Number.isFinite);
    const low = values.reduce((a, b) => Math.min(a, b)), top = values.reduce((a, b) => Math.max(a, b));
    const room = 0.06 * (top - low) || 1;
    const bottom = low < 0 ? low - room : 0, high = top + room;
    const x = (t) => LEFT + (W - LEFT - RIGHT) * t / last;
    const y = (v) => TOP + (H - TOP - BOTTOM) * (high - v) / (high - bottom);
    // A single point is a dot: its line has no length, and round ends.
    const path = (points) => points.map(([t, v], k) => `${k ? 'L' : 'M'}${x(t).toFixed(1)} ${y(v).toFixed(1)}`).join('') +
      (points.length === 1 ? 'h0' : '');
    const svg = element('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': label });
    const dy = every(high - bottom, 4);
    for (let v = Math.ceil(bottom / dy) * dy; v <= high; v += dy) {
      svg.append(element('line', { x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v), class: 'axis' }),
        element('text', { x: LEFT - 6, y: y(v) + 4, 'text-anchor': 'end' }, String(Number(v.toPrecision(4)))));
    }
    const dx = Math.max(1, every(last, 8));
    for (let t = Math.ceil(first / dx) * dx - first; t <= last; t += dx) {
      svg.append(element('text', { x: x(t), y: H - BOTTOM + 18, 'text-anchor': 'middle' }, first + t));
    }
    svg.append(element('line', { x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM, class: 'axis' }),
      element('text', { x: (LEFT + W - RIGHT) / 2, y: H - 6, 'text-anchor': 'middle' }, 'policy step'),
      element('text', { x: 15, y: (TOP + H - BOTTOM) / 2, 'text-anchor': 'middle',
        transform: `rotate(-90 15 ${(TOP + H - BOTTOM) / 2})` }, 'failure score'));
    for (const points of stretches(band)) {
      const floor = Math.max(bottom, 0);
      svg.append(element('path', { class: 'band-area', d: `${path(points)}L${x(points.at(-1)[0])} ${y(floor)}L${x(points[0][0])} ${y(floor)}Z` }),
        element('path', { class: 'band-line', d: path(points) }));
    }
    if (failure !== null) {
      svg.append(element('line', { class: 'annotated', x1: x(failure), x2: x(failure), y1: TOP, y2: H - BOTTOM }));
    }
    svg.append(element('path', { class: `score ${kind}`, d: stretches(scores).map(path).join('') }));
    if (alarm !== null) {
      const ax = x(alarm), ay = y(scores[alarm]) - 5;
      svg.append(element('path', { class: 'alarm-mark', d: `M${ax - 7} ${ay - 11}h14l-7 11Z` }));
    }
    const cursor = element('line', { class: 'past', y1: TOP, y2: H - BOTTOM });
    const dot = element('circle', { class: 'cursor-dot', r: 4.5 });
    place.replaceChildren(svg);
    return {
      moveCursor(t) {
        if (!cursor.parentNode) svg.append(cursor, dot);
        cursor.setAttribute('x1', x(t)); cursor.setAttribute('x2', x(t));
        dot.setAttribute('cx', x(t)); dot.setAttribute('cy', y(scores[t]));
      },
      indexAt(event) {
        const box = place.getBoundingClientRect();
        return Math.round(((event.clientX - box.left) * W / box.width - LEFT) / (W - LEFT - RIGHT) * last);
      },
    };
  }

  return { draw, number };
})();
