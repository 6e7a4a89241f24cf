// A map of up to 2,000 texts on the two axes along which their vectors differ most.
//
// texts -> embed -> /projection -> points -> zoom, lasso, keys -> a list of texts

import { api, h, svg } from "./lib.js";
import { short } from "./texts.js";
import { embed } from "./vectors.js";

const SHAPE = [1, 12 / 7]; // how much wider than high it is
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1] };

export async function textMap({ given, signal, progress }) {
  const { bytes, dim, dtype } = await embed(given, "float16", signal, progress);
  const headers = { "x-embedding-shape": `${given.input.length},${dim}`, "x-embedding-dtype": dtype };
  const answer = await api("projection", { method: "POST", body: bytes, headers, signal });
  return drawn(given.input, await answer.json());
}

function drawn(texts, { points, explained: [across, up] }) {
  const places = points.map(([x, y]) => [x, -y]);
  const orders = [0, 1].map((axis) => places.map((_, i) => i).sort((a, b) => places[a][axis] - places[b][axis]));
  const ends = orders.map((order, axis) => [order[0], order.at(-1)].map((i) => places[i][axis]));
  const size = 1.1 * Math.max(...ends.map(([least, most], axis) => (most - least) * SHAPE[axis])) || 1;
  const corner = ends.map(([least, most], axis) => (least + most - size / SHAPE[axis]) / 2);
  // A line of no length, with round ends: zooming makes it no larger.
  const dot = ([x, y], i) => svg("path", { d: `M${x} ${y}h0`, "data-i": i, "stroke-opacity": 0.7, "vector-effect": "non-scaling-stroke" });
  const dots = places.map(dot);
  const lasso = svg("polygon", { fill: "none", stroke: "currentColor", "stroke-width": 1, "vector-effect": "non-scaling-stroke" });
  const picture = svg("svg", { class: "plane", "stroke-linecap": "round", "stroke-width": 10, "aria-hidden": "true" }, dots, lasso);
  const told = h("p", { role: "status" });
  const [count, list] = [h("h2"), h("ol")];
  let [view, at, drag, selected] = [[...corner, size], 0, null, new Set()];

  const zoomBy = (factor, fixed = places[at]) => {
    const to = Math.max(size / 200, Math.min(size, view[2] / factor));
    view = to === size ? [...corner, size] : [...fixed.map((each, axis) => each - ((each - view[axis]) * to) / view[2]), to];
    picture.setAttribute("viewBox", [...view, to / SHAPE[1]].join(" "));
  };
  const go = (i) => {
    dots[at].setAttribute("stroke-width", 10);
    dots[(at = i)].setAttribute("stroke-width", 18);
    told.replaceChildren(`${i + 1} `, h("bdi", short(texts[i], 300)), selected.has(i) ? " (selected)" : "");
  };
  const select = (test) => {
    const found = texts.flatMap((text, i) => (test(i, text) ? [i] : []));
    selected = new Set(found);
    dots.forEach((each, i) => each.setAttribute("stroke", selected.has(i) ? "#e8590c" : "currentColor"));
    count.textContent = `${found.length} of ${texts.length} texts selected`;
    list.replaceChildren(...found.map((i) => h("li", { value: i + 1 }, h("bdi.long", texts[i]))));
    go(at);
  };
  const keys = {
    "+": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => zoomBy(0),
    " ": () => select((i) => selected.has(i) !== (i === at)), Escape: () => select(() => false),
  };
  const spot = ({ clientX, clientY }) => {
    const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(picture.getScreenCTM().inverse());
    return [x, y];
  };
  const box = h("div.picture", {
    tabindex: 0, role: "application", "aria-label": "Map: arrow keys go to other texts, space selects, + and - zoom",
    onpointerdown: (event) => {
      drag = [spot(event)];
      box.setPointerCapture(event.pointerId);
    },
    onpointermove: (event) => {
      if (drag) return lasso.setAttribute("points", (drag = [...drag, spot(event)]).join(" "));
      if (event.target.dataset.i) go(Number(event.target.dataset.i));
    },
    onpointerup: () => {
      if (drag.length > 2) select((i) => lasso.isPointInFill(new DOMPoint(...places[i])));
      lasso.removeAttribute("points");
      drag = null;
    },
    onwheel: (event) => {
      event.preventDefault();
      zoomBy(event.deltaY < 0 ? 1.25 : 0.8, spot(event));
    },
    onkeydown: (event) => {
      const [axis, step] = STEPS[event.key] ?? [];
      if (!step && !keys[event.key]) return;
      event.preventDefault();
      if (step) go(orders[axis][orders[axis].indexOf(at) + step] ?? at);
      else keys[event.key]();
    },
  }, picture);
  const find = h("input", { type: "search", oninput: () => {
    const words = find.value.toLowerCase();
    select((_, text) => words && text.toLowerCase().includes(words));
  } });
  const button = (sign, name, key) => h("button.quiet", { "aria-label": name, onclick: keys[key] }, sign);
  keys[0]();
  keys.Escape();
  return {
    elements: [
      h("div.row", h("label", "Select texts with", find),
        button("+", "Zoom in", "+"), button("−", "Zoom out", "-"), button("1:1", "Show all", 0)),
      box, told,
      h("p.muted", `Draw around texts to select them. The axes show ${Math.round(100 * (across + up))} % of how they differ.`),
      count, h("div.list", { tabindex: 0, role: "region", "aria-label": "Selected texts" }, list),
    ],
    name: "map",
    items: () => points.map(([x, y], i) => ({ x, y, selected: selected.has(i), text: texts[i] })),
    picture: () => picture,
  };
}
