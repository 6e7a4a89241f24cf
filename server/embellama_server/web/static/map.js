// A map of up to 2,000 texts on the two axes along which their vectors differ most.
//
// texts ── embed ──► bytes ── /projection ──► points ── zoom, lasso, keys ──► a list of texts

import { api, h, svg } from "./lib.js";
import { short } from "./texts.js";
import { embed } from "./vectors.js";

const [WIDTH, HEIGHT, EDGE] = [960, 560, 24];
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1] };

export async function textMap({ given, signal, progress }) {
  const { bytes, dim, dtype } = await embed(given, "float16", signal, progress);
  const headers = { "x-embedding-shape": `${given.input.length},${dim}`, "x-embedding-dtype": dtype };
  const answer = await api("projection", { method: "POST", body: bytes, headers, signal });
  return drawn(given.input, await answer.json());
}

function drawn(texts, { points, explained: [across, up] }) {
  const places = fit(points);
  const orders = [0, 1].map((axis) => places.map((_, i) => i).sort((a, b) => places[a][axis] - places[b][axis]));
  const dots = places.map(() => svg("circle", { r: 5, opacity: 0.7 }));
  const lasso = svg("polygon", { fill: "none", stroke: "currentColor" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plane", "aria-hidden": "true" }, dots, lasso);
  const told = h("p", { role: "status" });
  const [count, list] = [h("h2"), h("ol")];
  let [zoom, move, at, drag, selected] = [1, [0, 0], 0, null, new Set()];

  const on = (i) => places[i].map((each, axis) => each * zoom + move[axis]);
  const show = () => dots.forEach((dot, i) => on(i).forEach((each, axis) => dot.setAttribute(axis ? "cy" : "cx", each)));
  const zoomBy = (factor, fixed = on(at)) => {
    const before = zoom;
    zoom = Math.max(1, Math.min(200, zoom * factor));
    move = zoom === 1 ? [0, 0] : fixed.map((each, axis) => each - ((each - move[axis]) * zoom) / before);
    show();
  };
  const go = (i) => {
    dots[at].removeAttribute("stroke");
    dots[(at = i)].setAttribute("stroke", "red");
    told.replaceChildren(`${i + 1} `, h("bdi", {}, short(texts[i], 300)), selected.has(i) ? " (selected)" : "");
  };
  const select = (test) => {
    const found = texts.flatMap((text, i) => (test(i, text) ? [i] : []));
    selected = new Set(found);
    dots.forEach((dot, i) => dot.setAttribute("fill", selected.has(i) ? "#e8590c" : "currentColor"));
    count.textContent = `${found.length} of ${texts.length} texts selected`;
    list.replaceChildren(...found.map((i) => h("li", { value: i + 1 }, h("bdi.long", {}, texts[i]))));
    go(at);
  };
  const keys = {
    "+": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => zoomBy(0),
    " ": () => select((i) => selected.has(i) !== (i === at)), Escape: () => select(() => false),
  };
  const spot = ({ clientX, clientY }) => {
    const { left, top, width } = picture.getBoundingClientRect();
    return [clientX - left, clientY - top].map((each) => (each * WIDTH) / width);
  };
  const box = h("div.picture", {
    tabindex: 0, role: "application", "aria-label": "Map: arrow keys go to other texts, space selects, + and - zoom",
    onpointerdown: (event) => {
      drag = [spot(event)];
      box.setPointerCapture(event.pointerId);
    },
    onpointermove: (event) => {
      const here = spot(event);
      if (drag) return lasso.setAttribute("points", (drag = [...drag, here]).join(" "));
      const far = (i) => Math.hypot(on(i)[0] - here[0], on(i)[1] - here[1]);
      const near = orders[0].reduce((a, b) => (far(b) < far(a) ? b : a));
      if (far(near) < 15) go(near);
    },
    onpointerup: () => {
      if (drag.length > 2) select((i) => inside(on(i), drag));
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
  show();
  select(() => false);
  return {
    elements: [
      h("div.row", {}, h("label", {}, "Select texts with", find),
        button("+", "Zoom in", "+"), button("−", "Zoom out", "-"), button("1:1", "Show all", 0)),
      box, told, h("p.muted", {}, `Draw around texts to select them. The axes show ${Math.round(100 * (across + up))} % of how they differ.`),
      count, h("div.list", { tabindex: 0, role: "region", "aria-label": "Selected texts" }, list),
    ],
    name: "map",
    items: () => points.map(([x, y], i) => ({ x, y, selected: selected.has(i), text: texts[i] })),
    picture: () => picture,
  };
}

// Points in the picture's units, both axes to one scale, y upwards.
function fit(points) {
  const ends = [0, 1].map((axis) => points.map((point) => point[axis])).map((all) => [Math.min(...all), Math.max(...all)]);
  const [width, height] = ends.map(([least, most]) => most - least || 1);
  const scale = Math.min((WIDTH - 2 * EDGE) / width, (HEIGHT - 2 * EDGE) / height);
  const [x0, y0] = ends.map(([least, most]) => (least + most) / 2);
  return points.map(([x, y]) => [WIDTH / 2 + (x - x0) * scale, HEIGHT / 2 - (y - y0) * scale]);
}

// Whether a line to the right from a point crosses the edge an odd number of times.
const inside = ([x, y], corners) => corners.filter(([ax, ay], i) => {
  const [bx, by] = corners.at(i - 1);
  return ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax;
}).length % 2;
