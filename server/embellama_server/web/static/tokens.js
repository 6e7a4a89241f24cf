// The tokens of a text as the model reads them; those that were left out are struck through.

import { h } from "./lib.js";

const SHOWN = 600; // more than most models read; many thousand elements make a page slow

// `nCut` tokens were left out at the start or end; special ones around the text, which have no place in it, never are.
export function tokenList(tokens, nCut, atStart) {
  const inner = tokens.flatMap(({ start }, i) => (start === null ? [] : [i]));
  const cut = new Set(atStart ? inner.slice(0, nCut) : inner.slice(inner.length - nCut));
  const show = (from, to) => tokens.slice(from, to).map(({ id, text, special }, i) =>
    h(`${cut.has(from + i) ? "s" : "span"}.token${special ? ".special" : ""}`, { title: `id ${id}` }, h("bdi", {}, text)));
  const more = () => button.replaceWith(...show(SHOWN));
  const button = h("button.quiet", { type: "button", onclick: more }, `Show all ${tokens.length} tokens`);
  return h("p.tokens", {}, show(0, SHOWN), tokens.length > SHOWN && button);
}
