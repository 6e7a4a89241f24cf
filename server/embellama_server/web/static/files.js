// What is drawn, as files.

import { h } from "./lib.js";

// An apostrophe keeps spreadsheets from computing a text.
const cell = (value) =>
  typeof value === "string" ? `"${/^[=+\-@\t\r]/.test(value) ? "'" : ""}${value.replaceAll('"', '""')}"` : value;
const line = (values) => `${values.flat().map(cell).join()}\r\n`;

function csv(items) {
  const heads = Object.entries(items[0]).map(([name, value]) => (value.map ? value.map((_, i) => `${name} ${i + 1}`) : name));
  return [heads, ...items.map(Object.values)].map(line);
}

function svgFile(picture) {
  const copy = picture.cloneNode(true);
  copy.setAttribute("color", getComputedStyle(picture).color);
  // Characters that XML has no way to write.
  return new XMLSerializer().serializeToString(copy).replace(/[\0-\x08\v\f\x0e-\x1f\ufffe\uffff]/g, "\ufffd");
}

export function downloads({ name, items, picture }) {
  const writers = {
    CSV: () => csv(items()),
    JSONL: () => items().map((item) => `${JSON.stringify(item)}\n`),
    ...(picture && { SVG: () => [svgFile(picture())] }),
  };
  return h("div.row", Object.entries(writers).map(([kind, write]) => {
    const save = () => {
      const href = URL.createObjectURL(new Blob(write()));
      h("a", { href, download: `${name}.${kind.toLowerCase()}` }).click();
      setTimeout(() => URL.revokeObjectURL(href), 1000);
    };
    return h("button.quiet", { onclick: save }, `Download ${kind}`);
  }));
}
