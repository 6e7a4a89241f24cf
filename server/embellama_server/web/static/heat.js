// A heat map: how alike each of up to 64 texts is to each, as colours and as numbers.

import { h, svg, table } from "./lib.js";
import { short } from "./texts.js";
import { clustered, cosines, embed } from "./vectors.js";

const [LEFT, TOP] = [170, 24];
// Viridis: even steps look even, in light and dark, and to the colour-blind.
const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export async function heatMap({ given, signal, progress }) {
  const texts = given.input;
  const alike = cosines(await embed(given, "float", signal, progress));
  const side = Math.max(9, Math.min(44, 600 / texts.length));
  const told = h("p", { role: "status" });
  const sorted = h("input", { type: "checkbox", onchange: () => draw() });
  const numbers = h("details", {}, h("summary", {}, "Table of values"));
  let [order, at, picture] = [];

  const go = (row, column) => {
    if (!(row in order && column in order)) return;
    at = [row, column];
    const [i, j] = [order[row], order[column]];
    picture.lastChild.setAttribute("transform", `translate(${LEFT + column * side} ${TOP + row * side})`);
    const name = (k) => [` ${k + 1} `, h("bdi", {}, short(texts[k], 200))];
    told.replaceChildren(h("b", {}, alike[i][j].toFixed(3)), ...name(i), " and", ...name(j));
  };
  const draw = () => {
    order = sorted.checked ? clustered(alike) : texts.map((_, i) => i);
    picture = drawing(texts, alike, order, side);
    box.replaceChildren(picture);
    const rows = order.map((i) => [h("span", {}, `${i + 1} `, h("bdi", {}, short(texts[i], 40))), ...order.map((j) => alike[i][j].toFixed(3))]);
    numbers.lastChild.replaceWith(numbers.firstChild, table("Table of values", ["Text", ...order.map((i) => `${i + 1}#`)], rows));
    go(0, 0);
  };
  const box = h("div.picture", {
    tabindex: 0, role: "application", "aria-label": "Heat map: arrow keys go from cell to cell",
    onpointermove: ({ target }) => target.dataset.at && go(...target.dataset.at.split(" ").map(Number)),
    onkeydown: (event) => {
      if (!STEPS[event.key]) return;
      event.preventDefault();
      go(...STEPS[event.key].map((step, axis) => at[axis] + step));
    },
  });
  draw();
  return {
    elements: [h("label.check", {}, sorted, "Sort by cluster"), box, told, numbers],
    name: "similarity",
    rows: () => [["", ...order.map((i) => texts[i])], ...order.map((i) => [texts[i], ...order.map((j) => alike[i][j])])],
    items: () => order.map((i) => ({ text: texts[i], cosines: order.map((j) => alike[i][j]) })),
    picture: () => picture,
  };
}

function drawing(texts, alike, order, side) {
  const least = Math.min(...alike.flat());
  const middle = side / 2;
  const size = Math.min(12, side);
  const written = (x, y, anchor, ...words) => svg("text", { x, y, "text-anchor": anchor, "font-size": size }, words);
  const cells = order.map((i, row) => order.map((j, column) => {
    const share = (alike[i][j] - least) / (1 - least || 1);
    const [x, y] = [LEFT + column * side, TOP + row * side];
    const ink = { x: x + middle, y: y + middle + 4, "text-anchor": "middle", "font-size": 11, class: share > 0.6 ? "dark" : "light" };
    return [
      svg("rect", { x, y, width: side, height: side, fill: colour(share), "data-at": `${row} ${column}` }),
      side > 30 && svg("text", ink, alike[i][j].toFixed(2)),
    ];
  }));
  const labels = order.map((i, at) => [
    written(LEFT - 8, TOP + at * side + middle + size / 3, "end", svg("tspan", { "unicode-bidi": "isolate" }, short(texts[i], 22)), ` ${i + 1}`),
    written(LEFT + at * side + middle, TOP - 6, "middle", i + 1),
  ]);
  const end = TOP + texts.length * side + 12;
  const key = COLOURS.map((_, i) => svg("rect", { x: LEFT + 24 * i, y: end, width: 24, height: 8, fill: colour(i / 4) }));
  const ends = [written(LEFT - 6, end + 8, "end", least.toFixed(2)), written(LEFT + 126, end + 8, "start", "1.00")];
  const viewBox = `0 0 ${LEFT + texts.length * side + 8} ${end + 16}`;
  return svg("svg", { viewBox, "aria-hidden": "true" }, cells, labels, key, ends, svg("rect", { width: side, height: side, class: "cursor" }));
}

function colour(share) {
  const i = Math.min(Math.floor(4 * share), 3);
  return `rgb(${COLOURS[i].map((low, k) => Math.round(low + (COLOURS[i + 1][k] - low) * (4 * share - i))).join(" ")})`;
}
