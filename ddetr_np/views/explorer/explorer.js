// The page's life: a state, and `draw`, which makes the picture of it.
//
// Points are kept as in packing.py: offsets in tokens of their level (times `step`) from the
// query's reference point, weights in 255ths of the layer's largest. Places on the
// picture are x, y in its pixels; tokens of a level have centres at ½, 1½ …
'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const [W, H] = data.size;
const L = data.shapes.length, { M, K } = data;
const starts = data.shapes.reduce((s, [h, w]) => [...s, s[s.length - 1] + h * w], [0]);
const unit = Math.hypot(W, H) / 1000; // what is drawn grows with the picture
const by = (id) => document.getElementById(id);
const state = {
  part: 'encoder', layer: data.encoder.length - 1, head: -1, level: -1, from: 0,
  at: [W / 2, H / 2], detection: 0, moved: null, pinned: false, point: null, map: '',
};

const TYPES = {
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, int32: Int32Array,
  float32: Float32Array,
};

async function decode(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new TYPES[packed.type](await new Response(stream).arrayBuffer());
}

async function decodeLayers() {
  for (const layer of [...data.encoder, ...data.decoder]) {
    for (const [name, value] of Object.entries(layer)) {
      if (value.data) layer[name] = await decode(value);
    }
    // where a token's points stand in the arrays
    if (layer.tokens) layer.row = new Map(Array.from(layer.tokens, (t, i) => [t, i]));
  }
}

// ---- what is asked for

const layers = () => data[state.part];
const current = () => layers()[state.layer];

function levelOf(token) {
  return starts.findIndex((s, l) => token >= s && token < starts[l + 1]);
}

function centreOf(token) {
  const l = levelOf(token), [h, w] = data.shapes[l], i = token - starts[l];
  return [((i % w) + 0.5) / w * W, (Math.floor(i / w) + 0.5) / h * H];
}

// The token of a level that lies nearest to a place, of those that the layer has.
function nearestToken(place, l) {
  const layer = current(), [h, w] = data.shapes[l];
  const x = Math.min(w - 1, Math.max(0, Math.floor(place[0] / W * w)));
  const y = Math.min(h - 1, Math.max(0, Math.floor(place[1] / H * h)));
  const token = starts[l] + y * w + x;
  if (layer.row.has(token)) return token;
  let best = null, least = Infinity;
  for (const t of layer.tokens) { // a coarser grid: few enough to look at all
    if (t < starts[l] || t >= starts[l + 1]) continue;
    const [cx, cy] = centreOf(t), d = (cx - place[0]) ** 2 + (cy - place[1]) ** 2;
    if (d < least) [best, least] = [t, d];
  }
  return best;
}

// The query: its row in the layer's arrays, and its reference point.
function query() {
  const layer = current();
  if (state.part === 'encoder') {
    const token = nearestToken(state.at, state.from);
    return { token, row: layer.row.get(token), reference: centreOf(token) };
  }
  const row = data.detections[state.detection].query, n = layer.p_hat.length / (layer.A.length / (M * L * K));
  return { row, reference: [layer.p_hat[row * n] * W, layer.p_hat[row * n + 1] * H] };
}

// Eq. 3's φ_l(p̂) + Δp and A of a query, as circles.
function points({ row, reference }) {
  const layer = current(), found = [];
  const [x0, y0] = state.moved || reference;
  for (let m = 0; m < M; m++) for (let l = 0; l < L; l++) for (let k = 0; k < K; k++) {
    if ((state.head >= 0 && m !== state.head) || (state.level >= 0 && l !== state.level)) continue;
    const i = ((row * M + m) * L + l) * K + k, [h, w] = data.shapes[l];
    const dx = layer.offset[2 * i] * layer.step[l], dy = layer.offset[2 * i + 1] * layer.step[l];
    found.push({
      m, l, k, id: `${m},${l},${k}`, A: layer.A[i] / 255 * layer.largest,
      x: x0 + dx / w * W, y: y0 + dy / h * H,
    });
  }
  return found.sort((a, b) => a.A - b.A); // the strongest on top
}

// The four tokens that a point lies between, and the share of each (G of Eq. 2).
function corners(p) {
  const [h, w] = data.shapes[p.l];
  const x = p.x / W * w - 0.5, y = p.y / H * h - 0.5;
  const left = Math.floor(x), top = Math.floor(y), fx = x - left, fy = y - top;
  return [[0, 0], [1, 0], [0, 1], [1, 1]].map(([i, j]) => ({
    i, j, x: left + i, y: top + j, g: (i ? fx : 1 - fx) * (j ? fy : 1 - fy),
    inside: left + i >= 0 && left + i < w && top + j >= 0 && top + j < h,
    fx, fy,
  }));
}

// ---- drawing

const view = d3.select('#view').attr('viewBox', `0 0 ${W} ${H}`);
view.append('image').attr('width', W).attr('height', H).attr('href', data.picture);
const overlay = view.append('image').attr('width', W).attr('height', H)
  .attr('preserveAspectRatio', 'none').style('pointer-events', 'none');
const under = view.append('g'), dots = view.append('g'), over = view.append('g');
const cross = over.append('path').attr('class', 'cross').attr('stroke-width', 3 * unit);
const grip = over.append('circle').attr('class', 'grip').attr('r', 16 * unit);
const colour = d3.scaleSequential(d3.interpolateTurbo);

function draw() {
  const q = query(), all = points(q), layer = current();
  const top = Math.max(1e-6, d3.max(all, (p) => p.A) || 0);
  colour.domain([0, top]);
  drawUnder(q);
  dots.selectAll('circle').data(all, (p) => p.id).join('circle')
    .attr('class', (p) => (p.id === state.point ? 'dot chosen' : 'dot'))
    .attr('data-point', (p) => p.id).attr('cx', (p) => p.x).attr('cy', (p) => p.y)
    .attr('r', (p) => (4 + 4 * p.A / top) * unit).attr('stroke-width', unit)
    .attr('fill', (p) => colour(p.A))
    .on('click', (event, p) => { event.stopPropagation(); state.point = p.id; draw(); })
    .order();
  const [x, y] = state.moved || q.reference, r = 12 * unit;
  cross.attr('d', `M${x - r},${y}h${2 * r}M${x},${y - r}v${2 * r}`);
  grip.attr('cx', x).attr('cy', y);
  drawMap();
  drawScale(top);
  say(q, all, layer);
  drawCorners(all.find((p) => p.id === state.point) || all[all.length - 1]);
  by('pin').setAttribute('aria-pressed', state.pinned);
  by('back').disabled = !state.moved;
  d3.selectAll('#found button').attr('aria-pressed', (d, i) => state.part === 'decoder' && i === state.detection);
}

function drawUnder(q) {
  const isDecoder = state.part === 'decoder';
  const boxes = isDecoder ? data.detections.map((d, i) => ({ ...d, i })) : [];
  under.selectAll('rect.other').data(boxes.filter((d) => d.i !== state.detection), (d) => d.i).join('rect')
    .attr('class', 'other').attr('stroke-width', 1.5 * unit)
    .call(place, (d) => d.box)
    .on('click', (event, d) => { event.stopPropagation(); choose(d.i); });
  const chosen = isDecoder ? [{ ...data.detections[state.detection], box: layerBox(q.row) }] : [];
  under.selectAll('rect.box').data(chosen).join('rect').attr('class', 'box')
    .attr('stroke-width', 3 * unit).call(place, (d) => d.box);
  under.selectAll('text').data(chosen).join('text').attr('class', 'label')
    .attr('font-size', 22 * unit).attr('stroke-width', 4 * unit)
    .attr('x', (d) => Math.max(0, d.box[0])).attr('y', (d) => Math.max(22 * unit, d.box[1] - 6 * unit))
    .text((d) => `${d.name} ${d.score.toFixed(2)}`);
  let cell = [];
  if (q.token !== undefined) {
    const [h, w] = data.shapes[levelOf(q.token)], [cx, cy] = q.reference;
    cell = [[cx - W / w / 2, cy - H / h / 2, cx + W / w / 2, cy + H / h / 2]];
  }
  under.selectAll('rect.cell').data(cell).join('rect').attr('class', 'cell')
    .attr('stroke-width', 1.5 * unit).call(place, (d) => d);
}

// The box that this layer makes of the query, in pixels.
function layerBox(row) {
  const [cx, cy, w, h] = current().boxes.subarray(4 * row, 4 * row + 4);
  return [(cx - w / 2) * W, (cy - h / 2) * H, (cx + w / 2) * W, (cy + h / 2) * H];
}

function place(selection, box) {
  selection.attr('x', (d) => box(d)[0]).attr('y', (d) => box(d)[1])
    .attr('width', (d) => Math.max(0, box(d)[2] - box(d)[0]))
    .attr('height', (d) => Math.max(0, box(d)[3] - box(d)[1]));
}

function mapsNow() {
  const wanted = data.detections[state.detection].query;
  return (data.maps.find((m) => m.query === wanted) || { maps: {} }).maps;
}

function drawMap() {
  const maps = state.part === 'decoder' ? mapsNow() : {};
  if (!(state.map in maps)) state.map = '';
  options('map', [['', Object.keys(maps).length ? 'off' : 'none for this one'],
    ...Object.keys(maps).map((m) => [m, `‖∂${m}/∂I‖`])], state.map);
  overlay.attr('href', maps[state.map] || null).style('display', state.map ? null : 'none');
}

function drawScale(top) {
  const svg = d3.select('#scale').selectAll('svg').data([0]).join('svg')
    .attr('viewBox', '0 0 260 34').attr('role', 'img')
    .attr('aria-label', `colours from weight 0 to ${top.toFixed(3)}`);
  svg.selectAll('rect').data(d3.range(65)).join('rect')
    .attr('x', (i) => 4 * i).attr('width', 4.2).attr('height', 12).attr('fill', (i) => colour(i / 64 * top));
  svg.selectAll('text').data([[0, 'start', '0'], [260, 'end', top.toFixed(3)]]).join('text')
    .attr('x', (d) => d[0]).attr('y', 28).attr('text-anchor', (d) => d[1])
    .attr('font-size', 12).attr('fill', 'currentColor').text((d) => d[2]);
}

function drawCorners(p) {
  const svg = d3.select('#corners');
  const four = p ? corners(p) : [];
  svg.selectAll('rect').data(four).join('rect')
    .attr('x', (c) => 4 + 56 * c.i).attr('y', (c) => 4 + 56 * c.j).attr('width', 56).attr('height', 56)
    .attr('fill', 'var(--accent)').attr('fill-opacity', (c) => (c.inside ? 0.08 + 0.8 * c.g : 0))
    .attr('stroke', 'currentColor').attr('stroke-dasharray', (c) => (c.inside ? null : '3 3'));
  svg.selectAll('text').data(four).join('text')
    .attr('x', (c) => 32 + 56 * c.i).attr('y', (c) => 37 + 56 * c.j).attr('text-anchor', 'middle')
    .attr('font-size', 13).attr('fill', 'currentColor').text((c) => c.g.toFixed(2));
  svg.selectAll('circle').data(four.slice(0, 1)).join('circle')
    .attr('cx', (c) => 32 + 56 * c.fx).attr('cy', (c) => 32 + 56 * c.fy).attr('r', 4)
    .attr('fill', p ? colour(p.A) : 'none').attr('stroke', 'currentColor');
  by('point').textContent = p
    ? `Head ${p.m}, level ${p.l}, key ${p.k}: weight ${p.A.toFixed(3)}, at x ${p.x.toFixed(1)}, `
      + `y ${p.y.toFixed(1)}. It reads tokens (${four[0].x}, ${four[0].y}) to (${four[3].x}, ${four[3].y}) `
      + `of a map of ${data.shapes[p.l][1]} × ${data.shapes[p.l][0]}, in these shares`
      + (four.every((c) => c.inside) ? '.' : '; dashed ones lie outside and read zero.')
    : '';
}

function say(q, all, layer) {
  const who = state.part === 'encoder'
    ? `Encoder layer ${state.layer + 1} of ${data.encoder.length}, token of level ${levelOf(q.token)}`
    : `Decoder layer ${state.layer + 1} of ${data.decoder.length}, query ${q.row}: `
      + `${data.detections[state.detection].name} ${data.detections[state.detection].score.toFixed(2)}`;
  const [x, y] = state.moved || q.reference;
  const coarse = state.part === 'encoder' && layer.tokens.length < starts[L] ? ' This layer has a coarser grid of tokens.' : '';
  by('says').textContent = `${who}, reference point x ${x.toFixed(0)}, y ${y.toFixed(0)}`
    + `${state.moved ? ' (moved)' : ''}: ${all.length} points, weights together `
    + `${d3.sum(all, (p) => p.A).toFixed(2)}.${coarse}${state.pinned ? ' Pinned.' : ''}`;
}

// ---- controls

function options(id, pairs, value) {
  const select = by(id);
  d3.select(select).selectAll('option').data(pairs).join('option')
    .attr('value', (d) => d[0]).text((d) => d[1]);
  select.value = value;
}

function fillControls() {
  const n = layers().length;
  state.layer = Math.min(state.layer, n - 1);
  options('layer', d3.range(n).map((i) => [i, `${i + 1} of ${n}`]), state.layer);
  options('head', [[-1, 'all'], ...d3.range(M).map((m) => [m, m])], state.head);
  const level = (l) => [l, `${l}: ${data.shapes[l][1]} × ${data.shapes[l][0]}`];
  options('level', [[-1, 'all'], ...d3.range(L).map(level)], state.level);
  options('from', d3.range(L).map(level), state.from);
  by('from').disabled = state.part === 'decoder';
  by('map').disabled = state.part === 'encoder';
}

function change(fields) {
  Object.assign(state, fields);
  draw();
}

function choose(i) {
  if (state.part !== 'decoder') setPart('decoder');
  change({ detection: i, moved: null, point: null });
}

function setPart(part) {
  state.part = part;
  state.layer = layers().length - 1;
  state.moved = state.point = null;
  state.pinned = false;
  document.querySelector(`input[value=${part}]`).checked = true;
  fillControls();
  draw();
}

for (const id of ['layer', 'head', 'level', 'from']) {
  by(id).addEventListener('change', (e) => change({ [id]: +e.target.value, point: null }));
}
by('map').addEventListener('change', (e) => change({ map: e.target.value }));
by('pin').addEventListener('click', () => change({ pinned: !state.pinned }));
by('back').addEventListener('click', () => change({ moved: null }));
document.querySelectorAll('input[name=part]').forEach((input) => {
  input.addEventListener('change', () => setPart(input.value));
});
by('theme').addEventListener('click', () => {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const now = document.documentElement.dataset.theme || (dark ? 'dark' : 'light');
  document.documentElement.dataset.theme = now === 'dark' ? 'light' : 'dark';
});
d3.select('#found').selectAll('li').data(data.detections).join('li').append('button')
  .attr('type', 'button').text((d) => `${d.name} ${d.score.toFixed(2)}`)
  .on('click', (event, d) => choose(data.detections.indexOf(d)));

let dragging = false;
const follow = (event) => {
  if (state.part !== 'encoder' || state.pinned || dragging) return;
  change({ at: d3.pointer(event, view.node()), moved: null, point: null });
};
view.on('pointermove', follow).on('pointerdown', follow)
  .on('click', () => { if (state.part === 'encoder') change({ pinned: !state.pinned }); });
grip.on('click', (event) => event.stopPropagation());
grip.call(d3.drag()
  .container(view.node())
  .on('start', () => { dragging = true; state.pinned = state.part === 'encoder' || state.pinned; })
  .on('drag', (event) => change({
    moved: [Math.min(W, Math.max(0, event.x)), Math.min(H, Math.max(0, event.y))],
  }))
  .on('end', () => { dragging = false; }));

view.on('keydown', (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const n = layers().length;
  if (way && event.shiftKey) {
    const [x, y] = state.moved || query().reference;
    change({ moved: [x + way[0] * W / 100, y + way[1] * H / 100] });
  } else if (way && state.part === 'encoder') {
    const [h, w] = data.shapes[state.from], [x, y] = query().reference;
    const to = [x + way[0] * W / w, y + way[1] * H / h];
    if (to[0] > 0 && to[0] < W && to[1] > 0 && to[1] < H) change({ at: to, moved: null, point: null });
  } else if (way) {
    const many = data.detections.length;
    choose((state.detection + way[0] + way[1] + many) % many);
  } else if (event.key === 'Enter' || event.key === ' ') {
    change({ pinned: !state.pinned });
  } else if (event.key === '[' || event.key === ']') {
    state.layer = (state.layer + (event.key === ']' ? 1 : n - 1)) % n;
    fillControls();
    draw();
  } else if (event.key === 'Escape') {
    change({ pinned: false, moved: null, point: null });
  } else {
    return;
  }
  event.preventDefault();
});

decodeLayers().then(() => {
  fillControls();
  draw();
  document.documentElement.dataset.ready = 'yes'; // for whoever waits
});
