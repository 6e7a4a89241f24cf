// A call, to copy: for curl, Python and JavaScript. `keyed` is whether the server asks for keys; none is ever written.

// What cannot be seen, or turns round what is beside it, is escaped, as all three can be.
const HIDDEN = /[\x7f-\xa0\xad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
const literal = (value) => JSON.stringify(value, null, 2).replace(HIDDEN, escaped).replaceAll("\n", "\n  ");

export function snippets(base, body, keyed) {
  const url = new URL("v1/embeddings", base).href;
  const { model, input, ...more } = body;
  const extra = literal(more);
  return {
    // A here-document needs no quotes, and may be longer than an argument.
    curl: `curl '${url.replaceAll("'", "%27")}' -H 'content-type: application/json' \\
${keyed ? "  -H 'authorization: Bearer YOUR_KEY' \\\n" : ""}  --data-binary @- <<'END'
  ${literal(body)}
END
`,
    Python: `from openai import OpenAI

client = OpenAI(base_url=${literal(url.replace(/\/embeddings$/, ""))}, api_key="${keyed ? "YOUR_KEY" : "none"}")
answer = client.embeddings.create(
  model=${literal(model)},
  input=${literal(input)},
  encoding_format="float",
${extra === "{}" ? "" : `  extra_body=${extra},\n`})
print([item.embedding for item in answer.data])
`,
    JavaScript: `const response = await fetch(${literal(url)}, {
  method: "POST",
  headers: { "content-type": "application/json"${keyed ? ', authorization: "Bearer YOUR_KEY"' : ""} },
  body: JSON.stringify(${literal(body)}),
});
console.log((await response.json()).data.map((item) => item.embedding));
`,
  };
}
