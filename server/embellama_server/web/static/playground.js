// Playground: texts are embedded, and what became of them is shown.
//
// fields ── body ──► /v1/embeddings ──► vectors, times by phase
//             │      /tokenize ───────► tokens, the cut ones struck out
//             └─ snippets ──► the call, to copy

import { api, BASE, errorNote, h, ms, svg, table } from "./lib.js";
import { snippets } from "./snippets.js";
import { choice, pick, textForm } from "./texts.js";
import { tokenList } from "./tokens.js";

const DTYPES = ["float", "float16", "int8", "uint8", "binary", "ubinary"];
const SHOWN = 50; // texts

export default function playground(section) {
  const [tooLong, dtype] = [choice("Too long", ["none", "end", "start", "tokens"]), choice("Dtype", DTYPES)];
  const [limit, dimensions] = [0, 1].map(() => h("input", { type: "number", min: 1 }));
  const limited = h("label", {}, "Tokens to keep", limit);
  const language = pick("Language", ["curl", "Python", "JavaScript"]);
  const call = h("pre", { tabindex: 0, role: "region", "aria-label": "The call" });

  const body = (given) => {
    const truncate = limited.hidden ? tooLong.field.value : Number(limit.value);
    return {
      ...given,
      ...(truncate !== "none" && { truncate }),
      ...(dimensions.value && { dimensions: Number(dimensions.value) }),
      ...(dtype.field.value !== "float" && { output_dtype: dtype.field.value }),
    };
  };
  const changed = () => {
    limited.hidden = tooLong.field.value !== "tokens";
    call.textContent = snippets(BASE, body(form.body()), document.body.dataset.keys === "yes")[language.picked()];
  };
  const fields = [tooLong, limited, h("label", {}, "Dimensions", dimensions), dtype];
  const form = textForm("Embed", fields, async (given, _, signal) => {
    const sent = body(given);
    const answer = await api("v1/embeddings", { json: { ...sent, return_truncated: true }, signal });
    const found = await answer.json();
    return [times(answer.headers, found.usage.total_tokens), await results(sent, found, signal)];
  });
  const copy = () => {
    getSelection().selectAllChildren(call);
    document.execCommand("copy"); // The newer way is for https alone.
  };
  section.append(
    form.element, form.out,
    h("div.card", {}, h("h2", {}, "The call"),
      h("div.row", {}, language, h("button.quiet", { type: "button", onclick: copy }, "Copy")), call));
  section.oninput = section.onchange = changed;
  changed();
  return form;
}

// Phases one after another, as bars on one line of time.
function times(headers, nTokens) {
  const of = (name) => Number(headers.get(`x-${name}-time`));
  const total = of("total");
  let end = 0;
  const rows = ["tokenization", "queue", "inference", "encoding"].map((name) => {
    const start = end;
    end = name === "encoding" ? total : start + of(name); // what is left of the whole
    const [x, width] = [start, end - start].map((time) => `${Math.max(0, (100 * time) / (total || 1))}%`);
    return [name, ms(end - start), svg("svg", { "aria-hidden": "true" }, svg("rect", { x, width, height: "100%" }))];
  });
  const known = `${nTokens} tokens in ${ms(total)}; ${headers.get("x-embellama-cached-tokens")} of them were known before.`;
  return h("div.card.times", {}, h("h2", {}, "Time by phase"), h("p", {}, known),
    table("Time by phase", ["Phase", "Time#", "When"], rows));
}

async function results(sent, found, signal) {
  const inputs = sent.input.slice(0, SHOWN);
  const json = { model: sent.model, prompt_name: sent.prompt_name, inputs };
  let tokens, failed;
  try {
    tokens = await (await api("tokenize", { json, signal })).json();
  } catch (error) {
    if (signal.aborted) throw error;
    failed = error; // The vectors are here all the same.
  }
  const items = inputs.map((_, i) => {
    const nCut = found.truncated[i];
    return h("li", {},
      h("p.muted", {}, `${found.n_tokens[i]} tokens${nCut ? `, and ${nCut} that were cut` : ""}`),
      tokens && tokenList(tokens[i], nCut, sent.truncate === "start"),
      vector(found.data[i].embedding));
  });
  const rest = sent.input.length - SHOWN;
  return h("div.card", {}, h("h2", {}, "Tokens and vectors"), failed && errorNote(failed),
    h("ol.answers", {}, items), rest > 0 && h("p.muted", {}, `… and ${rest} more texts`));
}

// A stripe for each number, the stronger the farther it is from zero.
function vector(numbers) {
  const most = Math.max(...numbers.map(Math.abs)) || 1;
  const stripes = h("canvas.stripes", { width: numbers.length, height: 1, "aria-hidden": "true" });
  const paint = stripes.getContext("2d");
  numbers.forEach((x, i) => {
    paint.fillStyle = `hsl(${x < 0 ? 25 : 248} 75% 55% / ${Math.abs(x) / most})`;
    paint.fillRect(i, 0, 1, 1);
  });
  const first = numbers.slice(0, 6).map((x) => Number(x.toFixed(4)));
  return [stripes, h("code", {}, `${numbers.length} numbers: ${first.join(", ")}${numbers.length > 6 ? ", …" : ""}`)];
}
