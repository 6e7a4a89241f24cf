// What is drawn, as files: CSV, JSONL and SVG.

import { h, svg } from "./lib.js";

const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "opacity", "font-family"];

// A text that a spreadsheet would compute begins with an apostrophe there.
const cell = (value) =>
  typeof value === "number" ? value : `"${/^[=+\-@\t\r]/.test(value) ? "'" : ""}${value.replaceAll('"', '""')}"`;
const csv = (rows) => rows.map((row) => `${row.map(cell).join()}\r\n`).join("");
const jsonl = (items) => items.map((item) => `${JSON.stringify(item)}\n`).join("");

// The picture as it looks now, without the page's style sheet.
function svgFile(picture) {
  const copy = picture.cloneNode(true);
  const elements = copy.querySelectorAll("*");
  picture.querySelectorAll("*").forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of STYLES) elements[i].setAttribute(name, style.getPropertyValue(name));
  });
  copy.prepend(svg("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor }));
  // Characters that XML has no way to write.
  return new XMLSerializer().serializeToString(copy).replace(/[\0-\x08\v\f\x0e-\x1f\ufffe\uffff]/g, "\ufffd");
}

function save(name, type, content) {
  const href = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

export function downloads({ name, rows, items, picture }) {
  const button = (kind, type, write) =>
    h("button.quiet", { type: "button", onclick: () => save(`${name}.${kind.toLowerCase()}`, type, write()) }, `Download ${kind}`);
  return h("div.row", {}, button("CSV", "text/csv", () => csv(rows())), button("JSONL", "application/jsonl", () => jsonl(items())),
    picture && button("SVG", "image/svg+xml", () => svgFile(picture())));
}
