// Lines over the last ten minutes, drawn as SVG, with the values under the pointer as text.

import { h, svg } from "./lib.js";

const [WIDTH, HEIGHT] = [600, 100];

// Round up to few digits.
function ceiling(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= value);
}

// A path through values, with a gap where one is null; a lone one is a dot.
function path(values, y) {
  let [d, pen] = ["", false];
  const x = WIDTH / (values.length - 1);
  values.forEach((value, i) => {
    if (value != null) d += `${pen ? "L" : "M"}${(i * x).toFixed(1)} ${y(value).toFixed(1)}${pen ? "" : "h0"}`;
    pen = value != null;
  });
  return d;
}

// Lines, the first one in front; `write` makes text of a value; with `log`, powers of ten are equally high.
// update(series) takes as many arrays of values over ten minutes, the last one now.
export function chart(title, unit, names, write, log = false) {
  const grid = svg("path", { class: "grid" });
  const fill = svg("path", { class: "fill" });
  const paths = names.map((_, i) => svg("path", { class: "abc"[i] }));
  const mark = svg("path", { class: "grid" });
  const [top, bottom] = [h("span"), h("span.low")];
  const big = h("p.big");
  const drawing = svg(
    "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title, onpointermove, onpointerleave },
    grid, fill, [...paths].reverse(), mark);
  const keys = names.map((name, i) => name && h(`span.key.${"abc"[i]}`, name));
  const when = h("span", "now");
  let [series, hovered] = [[], null];

  function tell() {
    const last = series[0].length - 1;
    const i = hovered ?? last;
    const [first, ...others] = series.map((values) => write(values[i]));
    const rest = others.map((value, j) => ` · ${names[j + 1]} ${value}`);
    big.replaceChildren(first, h("small", " ", unit, rest));
    const ago = Math.round(((last - i) / (last + 1)) * 600);
    when.textContent = ago ? `${Math.floor(ago / 60)}:${String(ago % 60).padStart(2, "0")} min ago` : "now";
    mark.setAttribute("d", ago ? `M${(i * WIDTH) / last} 0V${HEIGHT}` : "");
  }

  function onpointermove({ clientX }) {
    const { left, width } = drawing.getBoundingClientRect();
    const last = series[0]?.length - 1;
    hovered = Math.max(0, Math.min(last, Math.round(((clientX - left) / width) * last)));
    if (last) tell();
  }

  function onpointerleave() {
    hovered = null;
    if (series.length) tell();
  }

  function update(given) {
    series = given;
    const all = series.flat().filter((value) => value > 0);
    const most = Math.max(...all, 0);
    let [low, marks] = [0, [0, 0.5, 1].map((part) => part * (most > 0 ? ceiling(most) : 1))];
    let scale = (value) => value;
    if (log && all.length) {
      scale = (value) => Math.log10(Math.max(value, low));
      low = 10 ** Math.floor(Math.log10(Math.min(...all)));
      marks = [low, 10 * low];
      while (marks.at(-1) < most) marks.push(10 * marks.at(-1));
    }
    const full = marks.at(-1);
    const y = (value) => (HEIGHT * (scale(full) - scale(value))) / (scale(full) - scale(low));
    grid.setAttribute("d", marks.map((value) => `M0 ${y(value)}H${WIDTH}`).join(""));
    bottom.textContent = low ? write(low) : "";
    paths.forEach((line, i) => line.setAttribute("d", path(series[i], y)));
    if (names.length === 1) fill.setAttribute("d", `${path(series[0], y)}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z`);
    top.textContent = write(full);
    drawing.setAttribute("aria-label", `${title}, last ten minutes: at most ${write(most)} ${unit}`);
    tell();
  }

  return {
    node: h("div.chart", big, h("div.axis", top, h("span.row", keys)), drawing, bottom,
      h("div.axis", h("span", "10 min ago"), when)),
    update,
  };
}
