// One line chart: values over the last minutes (a half to three, as they come in), gaps where nothing was measured.

const NS = "http://www.w3.org/2000/svg";
const SPANS = [[30, [[-30, "-30 s"], [-15, "-15 s"]]], [60, [[-60, "-60 s"], [-30, "-30 s"]]], [180, [[-180, "-3 min"], [-120, "-2"], [-60, "-1"]]]];
const BOX = { left: 36, right: 8, top: 8, bottom: 20 };

function node(name, attributes, parent, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// The smallest of 1, 2, 2.5, 5 x 10^n that is not below `value`.
export function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * (1 - 1e-9));
}

// Lower and upper end of the axis: from 0, or, for a share that stays near 1, from just below its smallest value.
export function range(values, { ceiling = null, floor = 0 } = {}) {
  const known = values.filter((v) => v !== null);
  if (!known.length) return [floor, ceiling ?? 1];
  if (ceiling === null) return [floor, 2 * nice(Math.max(...known) / 2)];
  const depth = nice(Math.max((ceiling - Math.min(...known)) / 2, ceiling / 200)) * 2;
  return [Math.max(floor, ceiling - depth), ceiling];
}

export class Chart {
  constructor(parent, { name, unit, format, ceiling = null }) {
    this.format = format;
    this.ceiling = ceiling;
    const card = document.createElement("figure");
    card.className = "card chart";
    card.style.margin = "0";
    card.innerHTML = '<header><span class="name"></span><span class="unit"></span><span class="value"></span></header>';
    card.querySelector(".name").textContent = name;
    card.querySelector(".unit").textContent = unit;
    this.value = card.querySelector(".value");
    this.svg = node("svg", { role: "img", "aria-label": name }, card);
    this.svg.addEventListener("pointermove", (event) => { this.pointer = event.offsetX; this.draw(); });
    this.svg.addEventListener("pointerleave", () => { this.pointer = null; this.draw(); });
    parent.append(card);
    this.card = card;
    this.t = [];
    this.y = [];
  }

  update(t, y) {
    this.t = t;
    this.y = y;
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    const [low, high] = range(this.y, { ceiling: this.ceiling });
    const oldest = this.t.length ? -this.t[0] : 0;
    const [span, ticks] = SPANS.find(([seconds]) => seconds >= oldest) ?? SPANS.at(-1);
    const x = (t) => BOX.left + (1 + t / span) * (width - BOX.left - BOX.right);
    const y = (v) => height - BOX.bottom - ((v - low) / (high - low)) * (height - BOX.top - BOX.bottom);
    this.svg.replaceChildren();
    this.axes(x, y, [low, high], ticks, width, height);
    const points = this.t.map((t, i) => [x(t), this.y[i] === null ? null : y(this.y[i])]).filter(([px]) => px >= BOX.left - 1);
    for (const run of runs(points)) this.run(run, y(low));
    const shown = this.cursor(x, y, height);
    this.value.textContent = shown === null ? "" : this.format(shown);
    if (!this.y.some((v) => v !== null)) node("text", { class: "empty", x: width / 2, y: height / 2, "text-anchor": "middle" }, this.svg, "no data yet");
  }

  axes(x, y, [low, high], ticks, width, height) {
    for (const v of [low, (low + high) / 2, high]) {
      node("line", { class: "grid", x1: BOX.left, x2: width - BOX.right, y1: y(v), y2: y(v) }, this.svg);
      node("text", { x: BOX.left - 6, y: y(v) + 3.5, "text-anchor": "end" }, this.svg, this.format(v));
    }
    for (const [t, label] of [...ticks, [0, "now"]]) {
      const anchor = t === 0 ? "end" : x(t) < BOX.left + 1 ? "start" : "middle";
      node("text", { x: x(t), y: height - 5, "text-anchor": anchor }, this.svg, label);
    }
  }

  run(points, base) {
    const line = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join("L");
    node("path", { class: "area", d: `M${points[0][0]},${base}L${line}L${points.at(-1)[0]},${base}Z` }, this.svg);
    node("path", { class: "line", d: `M${line}` }, this.svg);
  }

  // The value under the pointer, else the newest one.
  cursor(x, y, height) {
    let at = this.y.length - 1;
    if (this.pointer != null && this.t.length) {
      const distance = this.t.map((t) => Math.abs(x(t) - this.pointer));
      at = distance.indexOf(Math.min(...distance));
      node("line", { class: "cursor", x1: x(this.t[at]), x2: x(this.t[at]), y1: BOX.top, y2: height - BOX.bottom }, this.svg);
    }
    const value = this.y[at] ?? null;
    if (value !== null) node("circle", { class: "mark", cx: x(this.t[at]), cy: y(value), r: 4 }, this.svg);
    return value;
  }
}

function runs(points) {
  const found = [];
  let current = [];
  for (const point of points) {
    if (point[1] !== null) { current.push(point); continue; }
    if (current.length) found.push(current);
    current = [];
  }
  return current.length ? [...found, current] : found;
}
