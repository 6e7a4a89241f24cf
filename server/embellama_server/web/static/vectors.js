// Vectors of texts, and how alike they are.

import { api } from "./lib.js";

const BATCH = 256; // so that a slow machine answers in time

// A vector for each text, as bytes.
export async function embed(given, dtype, signal, progress) {
  const { input } = given;
  const parts = [];
  let headers;
  for (let start = 0; start < input.length; start += BATCH) {
    progress(`${start} of ${input.length} texts …`);
    const json = { ...given, input: input.slice(start, start + BATCH), output_dtype: dtype };
    const answer = await api("v1/embeddings", { json, signal, headers: { accept: "application/octet-stream" } });
    headers = answer.headers;
    parts.push(await answer.arrayBuffer());
  }
  const dim = Number(headers.get("x-embedding-shape").split(",")[1]);
  return { bytes: await new Blob(parts).arrayBuffer(), dim, dtype: headers.get("x-embedding-dtype") };
}

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

// How alike each row is to each, -1 to 1.
export function cosines({ bytes, dim }) {
  const numbers = new Float32Array(bytes);
  const rows = Array.from({ length: numbers.length / dim }, (_, i) => numbers.subarray(i * dim, (i + 1) * dim));
  const norms = rows.map((row) => Math.sqrt(dot(row, row)));
  return rows.map((a, i) => rows.map((b, j) => (i === j ? 1 : dot(a, b) / (norms[i] * norms[j]))));
}

// For each row the most alike of others.
export const best = (rows, others) => rows.map((row) => {
  const found = others.map((other) => dot(row, other));
  const alike = Math.max(...found);
  return { alike, place: found.indexOf(alike) };
});

// An order with like beside like: the two groups most alike on average are joined, turned so that alike ends meet.
export function clustered(alike) {
  let groups = alike.map((_, i) => [i]);
  const mean = (a, b) => a.reduce((sum, i) => b.reduce((s, j) => s + alike[i][j], sum), 0) / (a.length * b.length);
  const meeting = ([a, b]) => alike[a.at(-1)][b[0]];
  const most = (things, value) => things.reduce((x, y) => (value(y) > value(x) ? y : x));
  while (groups.length > 1) {
    const pairs = groups.flatMap((a, i) => groups.slice(0, i).map((b) => [mean(a, b), b, a]));
    const [, a, b] = most(pairs, ([value]) => value);
    const ways = [a, a.toReversed()].flatMap((left) => [b, b.toReversed()].map((right) => [left, right]));
    groups = [...groups.filter((group) => group !== a && group !== b), most(ways, meeting).flat()];
  }
  return groups[0];
}
