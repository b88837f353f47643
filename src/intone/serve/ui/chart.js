// Line charts that grow while one looks: faint points, a bold average, an axis with round numbers, a readout.

import { h, s, threeDigits } from "/ui/dom.js";

const HEIGHT = 210;
const MARGIN = { left: 56, right: 12, top: 12, bottom: 26 };
const MOST_POINTS = 1500; // of one line: more than a screen has columns
const AVERAGED_SHARE = 0.02; // of the points go into one of the bold line, as in the report

/** A chart in its own figure. series: [{name, colour 1-4, points: [[x, y or null]]}]. */
export class Chart {
  constructor({ title, unit, isFromZero = true, format = threeDigits, isSmooth = true, hasDots = false }) {
    Object.assign(this, { title, unit, isFromZero, format, isSmooth, hasDots, series: [], total: null });
    this.now = h("span", { class: "now" });
    this.svg = s("svg", { role: "img", class: "plot" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.root = h("figure", {}, h("figcaption", {}, h("strong", {}, title), h("span", { class: "unit" }, unit), this.now), h("div", { class: "plot-box" }, this.svg, this.tip));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.unpoint());
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  /** Shows these series; total: the x at which all will be done, null where unknown. */
  set(series, total = null) {
    this.series = series.map((line) => ({ ...line, points: thinned(line.points) })).filter((line) => line.points.some(([, y]) => y !== null));
    for (const line of this.series) line.smooth = this.isSmooth ? averaged(line.points) : line.points;
    this.total = total;
    this.draw();
  }

  draw() {
    const width = Math.round(this.svg.parentElement.clientWidth);
    this.root.hidden = !this.series.length;
    if (!this.series.length || width < 40) return;
    const all = this.series.flatMap((line) => line.points);
    const ys = all.map(([, y]) => y).filter((y) => y !== null);
    const spread = this.isSmooth ? trimmed(ys, this.series) : [Math.min(...ys), Math.max(...ys)];
    const low = this.isFromZero ? 0 : spread[0] - 0.06 * (spread[1] - spread[0] || 1);
    const high = spread[1] + 0.06 * (spread[1] - low || Math.abs(spread[1]) || 1);
    const right = Math.max(this.total ?? 0, ...all.map(([x]) => x));
    const x = (value) => MARGIN.left + ((width - MARGIN.left - MARGIN.right) * value) / (right || 1);
    const y = (value) => HEIGHT - MARGIN.bottom - ((HEIGHT - MARGIN.top - MARGIN.bottom) * (value - low)) / (high - low || 1);
    this.scale = { x, y, right, width };
    const last = this.series.at(-1).smooth.findLast(([, value]) => value !== null);
    this.now.textContent = this.format(last[1]);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("height", HEIGHT);
    this.svg.setAttribute("aria-label", `${this.title}, now ${this.format(last[1])} ${this.unit}`);
    this.svg.replaceChildren(...this.axes(low, high, right, width), ...this.series.flatMap((line) => this.lines(line)), (this.cursor = s("g", {})));
  }

  axes(low, high, right, width) {
    const { x, y } = this.scale;
    const rows = ticks(low, high, 4).map((value) => s("g", {}, s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }), s("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, this.format(value))));
    const columns = ticks(0, right, Math.max(2, Math.min(6, width / 110))).map((value) => s("text", { class: "tick", x: x(value), y: HEIGHT - 7, "text-anchor": value === 0 ? "start" : value > 0.96 * right ? "end" : "middle" }, value.toLocaleString("en-US")));
    return [...rows, ...columns];
  }

  lines(line) {
    const bold = s("path", { class: `line bold s${line.colour}`, d: this.path(line.smooth) });
    const dots = this.hasDots ? line.points.filter(([, v]) => v !== null).map(([px, py]) => s("circle", { class: `dot f${line.colour}`, cx: this.scale.x(px), cy: this.scale.y(py), r: 3.5 })) : [];
    return this.isSmooth ? [s("path", { class: `line faint s${line.colour}`, d: this.path(line.points) }), bold] : [bold, ...dots];
  }

  path(points) {
    let d = "";
    let isOpen = false;
    for (const [px, py] of points) {
      if (py === null) {
        isOpen = false;
        continue;
      }
      const inside = Math.max(MARGIN.top - 8, Math.min(HEIGHT - MARGIN.bottom, this.scale.y(py)));
      d += `${isOpen ? "L" : "M"}${this.scale.x(px).toFixed(1)} ${inside.toFixed(1)}`;
      isOpen = true;
    }
    return d;
  }

  point(event) {
    if (!this.scale) return;
    const box = this.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * this.scale.width;
    let best = null;
    for (const line of this.series) {
      line.points.forEach(([px, py], index) => {
        const far = Math.abs(this.scale.x(px) - at);
        if (py !== null && (!best || far < best.far)) best = { far, line, index, px, py };
      });
    }
    if (!best) return;
    const { px, py, line } = best;
    const cx = this.scale.x(px);
    this.cursor.replaceChildren(s("line", { class: "cursor", x1: cx, x2: cx, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }), s("circle", { class: `dot f${line.colour}`, cx, cy: Math.max(MARGIN.top, this.scale.y(py)), r: 3.5 }));
    this.tip.textContent = `${line.name} step ${(px - (line.before ?? 0)).toLocaleString("en-US")}: ${this.format(py)}`;
    this.tip.hidden = false;
    const left = Math.min(Math.max(0, (cx / this.scale.width) * box.width - this.tip.offsetWidth / 2), box.width - this.tip.offsetWidth);
    this.tip.style.left = `${left}px`;
  }

  unpoint() {
    this.cursor?.replaceChildren();
    this.tip.hidden = true;
  }
}

/** From the least to the most, without the few first values that would press everything else flat. */
function trimmed(ys, series) {
  const bold = series.flatMap((line) => line.smooth.map(([, y]) => y)).filter((y) => y !== null);
  const ordered = [...ys].sort((a, b) => a - b);
  const most = ordered[Math.min(ordered.length - 1, Math.floor(0.995 * ordered.length))];
  return [Math.min(ordered[0], ...bold), Math.max(most, ...bold.slice(Math.min(3, bold.length - 1)))];
}

/** Round numbers from low to high, about num of them. */
export function ticks(low, high, num) {
  const raw = (high - low) / Math.max(1, num);
  if (!(raw > 0)) return [low];
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

/** At most MOST_POINTS points: means of neighbours. */
function thinned(points) {
  if (points.length <= MOST_POINTS) return points;
  const size = Math.ceil(points.length / MOST_POINTS);
  const kept = [];
  for (let at = 0; at < points.length; at += size) {
    const group = points.slice(at, at + size);
    const values = group.map(([, y]) => y).filter((y) => y !== null);
    kept.push([group.at(-1)[0], values.length ? values.reduce((sum, y) => sum + y, 0) / values.length : null]);
  }
  return kept;
}

/** An average over about the last 2% of the points, right from the first on. */
export function averaged(points) {
  const keep = 1 - 2 / (Math.max(1, Math.round(AVERAGED_SHARE * points.length)) + 1);
  let total = 0;
  let weight = 0;
  return points.map(([x, y]) => {
    if (y === null) return [x, null];
    total = keep * total + (1 - keep) * y;
    weight = keep * weight + (1 - keep);
    return [x, total / weight];
  });
}
