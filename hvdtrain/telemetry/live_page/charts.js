// Line charts and stacked charts as SVG. They are redrawn for each answer: a few hundred points each.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 20;

const number = digits => value =>
  value.toLocaleString("en-US", {maximumSignificantDigits: digits});
const isNumber = value => typeof value === "number";

function element(name, parent, css = "", text = "") {
  const made = parent.appendChild(document.createElement(name));
  if (css) made.className = css;
  if (text) made.textContent = text;
  return made;
}

function shape(name, parent, attributes) {
  const made = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// About `count` round numbers from low to high.
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-6), last = Math.floor(high / step + 1e-6);
  return Array.from({length: Math.max(0, last - first + 1)}, (_, i) => (first + i) * step);
}

function nearest(xs, x) {
  let best = -1;
  xs.forEach((value, i) => {
    if (isNumber(value) && (best < 0 || Math.abs(value - x) <= Math.abs(xs[best] - x))) best = i;
  });
  return best;
}

// spec: title; x (a column); lines [{from, key, name, color, style}]; stacked; zero (the y axis
// includes 0); top (the y axis includes this value); format (value to text); unitX (last x to the
// unit's size and name); formatX.
// A chart without any value hides itself.
class Chart {
  constructor(parent, spec) {
    this.spec = spec;
    this.figure = element("figure", parent);
    const caption = element("figcaption", this.figure);
    element("h2", caption, "", spec.title);
    this.values = spec.lines.map(line => {
      const entry = element("span", caption);
      element("i", entry, "dot").style.background = `var(--${line.color})`;
      entry.append(`${line.name} `);
      return element("b", entry);
    });
    this.place = element("span", caption);
    this.svg = shape("svg", this.figure, {role: "img"});
    this.svg.setAttribute("aria-label", spec.title);
    this.svg.addEventListener("pointermove", event => this.point(event.offsetX));
    this.svg.addEventListener("pointerdown", event => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.pointed = null;
    new ResizeObserver(([entry]) => {
      this.box = entry.contentRect; // read only here: other ways to ask cost a layout of the page
      this.draw();
    }).observe(this.svg);
  }

  update(data) {
    this.series = this.spec.lines.map(line => {
      return {...line, xs: data[line.from][this.spec.x], ys: data[line.from][line.key]};
    });
    this.phases = this.spec.x === "epoch" ? phaseStarts(data.history) : [];
    this.draw();
  }

  draw() {
    if (!this.series) return;
    const known = this.series.some(line => line.ys.some(isNumber));
    this.figure.hidden = !known;
    if (!known || !this.box?.width) return;
    const layers = this.spec.stacked ? stack(this.series) : this.series;
    this.measure(layers);
    this.svg.replaceChildren();
    this.axes();
    for (const layer of layers) this.drawLine(layer);
    this.cursor = shape("path", this.svg, {class: "cursor"});
    this.point(this.pointed);
  }

  // Set the scales from values to pixels of the SVG.
  measure(layers) {
    const {width, height} = this.box;
    const xs = layers.flatMap(line => line.xs).filter(isNumber);
    const ys = layers.flatMap(line => [...line.ys, ...(line.base ?? [])]).filter(isNumber);
    let low = Math.min(...ys), high = Math.max(...ys);
    if (this.spec.zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
    high = Math.max(high, this.spec.top ?? high);
    const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
    if (!this.spec.zero || low < 0) low -= room;
    high += room;
    const first = Math.min(...xs), last = Math.max(...xs), span = last - first || 1;
    this.width = width;
    this.height = height;
    this.rangeX = [first, last];
    this.rangeY = [low, high];
    this.toX = x => LEFT + (x - first) / span * (width - LEFT - RIGHT);
    this.toY = y => TOP + (high - y) / (high - low) * (height - TOP - BOTTOM);
    this.fromX = pixel => first + (pixel - LEFT) / (width - LEFT - RIGHT) * span;
  }

  axes() {
    const {format, unitX} = this.spec, right = this.width - RIGHT, bottom = this.height - BOTTOM;
    for (const y of ticks(...this.rangeY, 4)) {
      const at = this.toY(y).toFixed(1);
      shape("path", this.svg, {class: "grid", d: `M${LEFT},${at}H${right}`});
      const text = shape("text", this.svg, {x: LEFT - 5, y: +at + 4, "text-anchor": "end"});
      text.textContent = format(y, true);
    }
    const [first, last] = this.rangeX, [unit, name] = unitX(last);
    const count = Math.min(6, this.width / 60);
    for (const x of last > first ? ticks(first / unit, last / unit, count) : [first / unit]) {
      const at = {x: this.toX(x * unit), y: this.height - 5, "text-anchor": "middle"};
      shape("text", this.svg, at).textContent = number(4)(x);
    }
    const corner = {x: LEFT - 8, y: this.height - 5, "text-anchor": "end"};
    shape("text", this.svg, corner).textContent = name;
    for (const x of this.phases) {
      shape("path", this.svg, {class: "phase", d: `M${this.toX(x).toFixed(1)},${TOP}V${bottom}`});
    }
  }

  drawLine({xs, ys, base, color, style}) {
    const points = xs.map((x, i) => isNumber(x) && isNumber(ys[i]) &&
      [this.toX(x).toFixed(1), this.toY(ys[i]).toFixed(1)]);
    if (base) {
      const back = xs.map((x, i) => `L${this.toX(x).toFixed(1)},${this.toY(base[i]).toFixed(1)}`);
      const top = points.map(([x, y]) => `L${x},${y}`).join("").replace("L", "M");
      const area = shape("path", this.svg, {d: top + back.reverse().join("") + "Z"});
      area.style.fill = `var(--${color})`;
      return;
    }
    let path = "", drawing = false;
    for (const point of points) {
      if (!point) {
        drawing = false;
        continue;
      }
      const [x, y] = point;
      if (!drawing) path += `M${x},${y}h0`;
      else path += style === "step" ? `H${x}V${y}` : `L${x},${y}`;
      drawing = true;
    }
    const line = shape("path", this.svg, {class: `line ${style ?? ""}`, d: path});
    line.style.stroke = `var(--${color})`;
    if (style !== "marked" || points.length > 60) return;
    const dots = points.filter(Boolean).map(([x, y]) => `M${x},${y}h0`).join("");
    shape("path", this.svg, {class: "line dots", d: dots}).style.stroke = `var(--${color})`;
  }

  // Show the values at this pixel; for null the newest values.
  point(pixel) {
    this.pointed = pixel;
    const target = pixel === null ? this.rangeX[1] : this.fromX(pixel);
    this.series.forEach(({xs, ys}, i) => {
      const known = xs.map((x, k) => isNumber(ys[k]) ? x : null);
      const at = nearest(known, target);
      this.values[i].parentElement.hidden = at < 0;
      this.values[i].textContent = at < 0 ? "" : this.spec.format(ys[at]);
    });
    const {xs} = this.series[0], at = nearest(xs, target);
    const shown = pixel !== null && at >= 0;
    this.place.textContent = shown ? `at ${this.spec.formatX(xs[at])}` : "";
    const line = shown ? `M${this.toX(xs[at]).toFixed(1)},${TOP}V${this.height - BOTTOM}` : "";
    this.cursor.setAttribute("d", line);
  }
}

// Each line on top of the lines before it; negative values are stacked downwards from zero.
function stack(series) {
  const up = series[0].xs.map(() => 0), down = [...up];
  return series.map(line => {
    const pile = line.ys.map(y => y < 0 ? down : up), base = pile.map((sums, i) => sums[i]);
    pile.forEach((sums, i) => { sums[i] += line.ys[i] ?? 0; });
    return {...line, base, ys: pile.map((sums, i) => sums[i])};
  });
}

function phaseStarts({epoch, phase}) {
  return epoch.filter((_, i) => i > 0 && phase[i] !== phase[i - 1]);
}
