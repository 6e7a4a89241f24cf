// A heat map: how alike each of up to 64 texts is to each, as colours and as numbers.

import { h, svg, table } from "./lib.js";
import { short } from "./texts.js";
import { clustered, cosines, embed } from "./vectors.js";

const [LEFT, TOP] = [180, 24];
// Dark violet to bright yellow: seen by everybody, in light and dark.
const colour = (share) => `hsl(${270 - 215 * share},65%,${18 + 40 * share}%)`;
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export async function heatMap({ given, signal, progress }) {
  const texts = given.input;
  const alike = cosines(await embed(given, "float", signal, progress));
  const side = Math.max(9, Math.min(44, 600 / texts.length));
  const told = h("p", { role: "status" });
  const sorted = h("input", { type: "checkbox", onchange: () => draw() });
  const numbers = h("details", h("summary", "Table of values"));
  let [order, at, picture] = [];

  const go = (row, column) => {
    if (!(row in order && column in order)) return;
    at = [row, column];
    const [i, j] = [order[row], order[column]];
    picture.lastChild.setAttribute("transform", `translate(${LEFT + column * side} ${TOP + row * side})`);
    const name = (k) => [` ${k + 1} `, h("bdi", short(texts[k], 200))];
    told.replaceChildren(h("b", alike[i][j].toFixed(3)), ...name(i), " and", ...name(j));
  };
  const draw = () => {
    order = sorted.checked ? clustered(alike) : texts.map((_, i) => i);
    picture = drawing(texts, alike, order, side);
    box.replaceChildren(picture);
    const rows = order.map((i) => [[`${i + 1} `, h("bdi", short(texts[i], 40))], ...order.map((j) => alike[i][j].toFixed(3))]);
    numbers.replaceChildren(numbers.firstChild, table("Table of values", ["Text", ...order.map((i) => `${i + 1}#`)], rows));
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
    elements: [h("label.row", sorted, "Sort by cluster"), box, told, numbers],
    name: "similarity",
    items: () => order.map((i) => ({ text: texts[i], cosine: order.map((j) => alike[i][j]) })),
    picture: () => picture,
  };
}

function drawing(texts, alike, order, side) {
  const least = Math.min(...alike.flat());
  const size = Math.min(12, 0.75 * side);
  const word = (x, y, anchor, words, fill = "currentColor") =>
    svg("text", { x, y: y + size / 3, fill, "text-anchor": anchor, "font-size": size, "pointer-events": "none" }, words);
  const cells = order.map((i, row) => order.map((j, column) => {
    const share = (alike[i][j] - least) / (1 - least || 1);
    const [x, y] = [LEFT + column * side, TOP + row * side];
    const cell = { x, y, width: side, height: side, fill: colour(share), "data-at": `${row} ${column}` };
    const value = side > 30 && word(x + side / 2, y + side / 2, "middle", alike[i][j].toFixed(2), share > 0.45 ? "#000" : "#fff");
    return [svg("rect", cell), value];
  }));
  const labels = order.map((i, at) => {
    const middle = (at + 0.5) * side;
    const raised = side < 20 && at % 2 ? size : 0; // two digits are as wide as a cell
    const name = svg("tspan", { "unicode-bidi": "isolate" }, short(texts[i], 19));
    return [word(LEFT - 8, TOP + middle, "end", [name, ` ${i + 1}`]), word(LEFT + middle, TOP - 10 - raised, "middle", i + 1)];
  });
  const end = TOP + texts.length * side;
  const scale = word(LEFT, end + 16, "start", `${least.toFixed(2)} is dark, 1 is bright.`);
  const cursor = svg("rect", { width: side, height: side, fill: "none", stroke: "red", "stroke-width": 2 });
  const viewBox = `0 0 ${LEFT - TOP + end + 8} ${end + 28}`;
  return svg("svg", { viewBox, "aria-hidden": "true", "font-family": "sans-serif" }, cells, labels, scale, cursor);
}
