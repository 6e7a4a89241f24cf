// Texts ranked by a query, with what matched underlined.
//
// /v1/rerank -> an order -> /tokenize, /embed_all of the first -> what is most like each token of the query (MaxSim)

import { api, h, table } from "./lib.js";
import { best } from "./vectors.js";

const MATCHED = 10; // texts whose tokens are compared
const MOST_NUMBERS = 1.5e6; // in all tokens' vectors, which come as JSON

export async function ranking({ given, model, query, signal }) {
  if (!query.trim()) throw new Error("The query is empty.");
  const texts = given.input;
  const ask = async (path, more) => (await api(path, { json: { model: given.model, ...more }, signal })).json();
  const { results, method } = await ask("v1/rerank", { query, documents: texts, truncate: "end" });
  const items = results.map(({ index, relevance_score: score }) => {
    const text = h("bdi.long", texts[index]);
    return { index, score, text, element: h("li", h("b", score.toFixed(4)), text) };
  });
  const first = items.slice(0, MATCHED);
  const told = method !== "cosine" ? "Scored by a reranker." : await underline(ask, model, query, texts, first).catch((error) => {
    signal.throwIfAborted();
    return `Tokens were not compared: ${error.message}`; // the order is here all the same
  });
  return {
    elements: [h("p.muted", told), h("ol.answers", items.map(({ element }) => element))],
    name: "ranking",
    items: () => items.map(({ index, score }, i) => ({ rank: i + 1, index, score, text: texts[index] })),
  };
}

async function underline(ask, model, query, texts, items) {
  const inputs = [query, ...items.map(({ index }) => texts[index])];
  const tokens = await ask("tokenize", { inputs });
  let room = MOST_NUMBERS / model.dimensions;
  const sent = inputs.filter((_, i) => (room -= Math.min(tokens[i].length, model.max_input_tokens)) >= 0);
  if (sent.length < 2) return "The texts are too long to compare their tokens.";
  const rows = await ask("embed_all", { inputs: sent, truncate: true });
  const [asked, ...read] = rows.map((each, i) => inner(tokens[i], each));
  read.forEach((document, i) => mark(items[i], inputs[i + 1], asked, document));
  return `Underlined is what is most like a token of the query, in the first ${read.length} texts.`;
}

// Tokens of the text itself, but for what was cut, with their vectors: special tokens match everything a little.
function inner(tokens, rows) {
  const first = tokens.findIndex(({ start }) => start !== null);
  const end = first + rows.length - tokens.filter(({ start }) => start === null).length;
  return { tokens: tokens.slice(first, end), rows: rows.slice(first, end) };
}

function mark({ text, element }, words, asked, document) {
  const matches = best(asked.rows, document.rows)
    .map(({ place, alike }, i) => ({ ...document.tokens[place], alike, by: asked.tokens[i].text }));
  const characters = [...words]; // as the server counts them
  const between = (start, stop) => characters.slice(start, stop).join("");
  const parts = [];
  let end = 0;
  for (const { start, stop, by, alike } of matches.toSorted((a, b) => a.start - b.start || b.alike - a.alike)) {
    if (start < end) continue; // matched better by another token
    parts.push(between(end, start), h(alike > 0.5 ? "u.strong" : "u", { title: `${by} ${alike.toFixed(2)}` }, between(start, stop)));
    end = stop;
  }
  text.replaceChildren(...parts, between(end));
  const rows = matches.map(({ by, alike, text: found }) => [h("bdi", by), h("bdi", found), alike.toFixed(3)]);
  element.append(h("details", h("summary", "Tokens"), table("Tokens", ["Query", "Most like it", "Cosine#"], rows)));
}
