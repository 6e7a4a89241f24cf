// Similarity: why texts are near. The same texts as a heat map, ranked by a query, or as a map.

import { downloads } from "./files.js";
import { heatMap } from "./heat.js";
import { h } from "./lib.js";
import { textMap } from "./map.js";
import { ranking } from "./rank.js";
import { choice, textForm } from "./texts.js";

// What draws each, and of how many texts.
const VIEWS = { "Heat map": [heatMap, 2, 64], Query: [ranking, 1, 2048], Map: [textMap, 2, 2000] };

export default function similarity(section) {
  const view = choice("View", Object.keys(VIEWS));
  const query = h("input", { dir: "auto" });
  const asked = h("label.wide", { hidden: true }, "Query", query);
  const form = textForm("Compare", [view, asked], async (given, model, signal, progress) => {
    const [draw, least, most] = VIEWS[view.field.value];
    const n = given.input.length;
    if (n < least || n > most) throw new Error(`There are ${n} texts; it must be ${least} to ${most}.`);
    const found = await draw({ given: { ...given, truncate: "end" }, model, query: query.value, signal, progress });
    return [h("div.card", found.elements, downloads(found))];
  });
  view.onchange = () => {
    asked.hidden = view.field.value !== "Query";
    form.prompt.hidden = !asked.hidden; // A ranking has prompts of its own.
  };
  section.append(form.element, form.out);
  return form;
}
