// Playground: what becomes of texts.
//
// form -> /v1/embeddings, /tokenize -> times by phase, tokens, vectors
//   or -> snippets: the call, to copy

import { api, bar, BASE, card, errorNote, h, ms, table } from "./lib.js";
import { snippets } from "./snippets.js";
import { choice, textForm } from "./texts.js";

const DTYPES = ["float", "float16", "int8", "uint8", "binary", "ubinary"];
const TEXTS = 50; // shown
const TOKENS = 600; // of a text, until more are asked for: many thousands are slow

export default function playground(section) {
  const [tooLong, dtype] = [choice("Too long", ["", "end", "start", "tokens"]), choice("Dtype", DTYPES)];
  const [limit, dimensions] = [0, 1].map(() => h("input", { type: "number", min: 1 }));
  const limited = h("label", "Tokens to keep", limit);
  const language = choice("Language", ["curl", "Python", "JavaScript"]);
  const call = h("pre", { tabindex: 0, role: "region", "aria-label": "The call" });

  const count = ({ value }) => (value ? Number(value) : undefined);
  const body = (given) => ({
    ...given,
    truncate: limited.hidden ? tooLong.field.value || undefined : count(limit),
    dimensions: count(dimensions),
    output_dtype: dtype.field.selectedIndex ? dtype.field.value : undefined,
  });
  const fields = [tooLong, limited, h("label", "Dimensions", dimensions), dtype];
  const form = textForm("Embed", fields, async (given, _, signal) => {
    const sent = body(given);
    const answer = await api("v1/embeddings", { json: { ...sent, return_truncated: true }, signal });
    const found = await answer.json();
    return [times(answer.headers, found.usage.total_tokens), await results(sent, found, signal)];
  });
  const changed = () => {
    limited.hidden = tooLong.field.value !== "tokens";
    call.textContent = snippets(BASE, body(form.body()), document.body.dataset.keys === "yes")[language.field.value];
  };
  const copy = () => {
    getSelection().selectAllChildren(call);
    document.execCommand("copy"); // The newer way is for https alone.
  };
  section.append(form.element, form.out, card("The call",
    h("div.form", h("div.row", language, h("button.quiet", { onclick: copy }, "Copy"))), call));
  section.oninput = section.onchange = changed;
  changed();
  return form;
}

function times(headers, nTokens) {
  const names = ["tokenization", "queue", "inference", "encoding"];
  const of = (name) => Number(headers.get(`x-${name}-time`));
  const [total, spent] = [of("total"), names.map(of)];
  spent[3] = spent.reduce((rest, each) => Math.max(0, rest - each), total);
  const rows = names.map((name, i) => [name, ms(spent[i]), bar(spent[i] / (total || 1))]);
  const known = `${nTokens} tokens in ${ms(total)}; ${headers.get("x-embellama-cached-tokens")} of them were known before.`;
  return card("Time by phase", h("p", known),
    table("Time by phase", ["phase", "time#", "share"], rows));
}

async function results({ model, prompt_name, input, truncate }, { data, n_tokens, truncated }, signal) {
  const inputs = input.slice(0, TEXTS);
  const json = { model, prompt_name, inputs };
  const tokens = await api("tokenize", { json, signal }).then((answer) => answer.json(), errorNote);
  signal.throwIfAborted();
  const tokenized = Array.isArray(tokens); // else they are too many, and the vectors are here all the same
  const items = inputs.map((_, i) => {
    const cut = truncated[i] ? `, and ${truncated[i]} that were cut` : "";
    const numbers = data[i].embedding.slice(0, 8).map((x) => Number(x.toFixed(4)));
    return h("li", h("p.muted", `${n_tokens[i]} tokens${cut}`),
      tokenized && tokenList(tokens[i], truncated[i], truncate === "start"),
      h("code", `${data[i].embedding.length} numbers: ${numbers.join(", ")} …`));
  });
  return card("Tokens and vectors", !tokenized && tokens, h("ol.answers", items),
    input.length > TEXTS && h("p.muted", `… and ${input.length - TEXTS} more texts`));
}

// The tokens of a text. Some were left out at its start or end; special ones around it, without a place, never are.
function tokenList(tokens, nCut, atStart) {
  const inner = tokens.flatMap(({ start }, i) => (start === null ? [] : [i]));
  const cut = new Set(atStart ? inner.slice(0, nCut) : inner.slice(inner.length - nCut));
  const show = (from, to) => tokens.slice(from, to).map(({ id, text, special }, i) =>
    h(`${cut.has(from + i) ? "s" : "span"}.token${special ? ".special" : ""}`, { title: `id ${id}` }, h("bdi", text)));
  const onclick = () => more.replaceWith(...show(TOKENS));
  const more = h("button.quiet", { onclick }, `Show all ${tokens.length} tokens`);
  return h("p.tokens", show(0, TOKENS), tokens.length > TOKENS && more);
}
