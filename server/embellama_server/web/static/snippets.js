// A call of the server, to copy: for curl, Python and JavaScript.

// What would be invisible, or turn round what stands beside it, is escaped: it means the same in all three languages.
const HIDDEN = /[\x7f-\xa0\xad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const KEY = "YOUR_KEY";

// `keyed`: whether the server asks for keys; nobody's own is ever written.
export function snippets(base, body, keyed) {
  const url = new URL("v1/embeddings", base).href;
  return { curl: curl(url, body, keyed), Python: python(url, body, keyed), JavaScript: javascript(url, body, keyed) };
}

const literal = (value, indent) =>
  JSON.stringify(value, null, indent).replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

// A here-document needs no quotes, and a text may be longer than an argument.
function curl(url, body, keyed) {
  const key = keyed ? `  -H 'authorization: Bearer ${KEY}' \\\n` : "";
  return `curl '${url.replaceAll("'", "%27")}' \\
  -H 'content-type: application/json' \\
${key}  --data-binary @- <<'END'
${literal(body, 2)}
END
`;
}

function python(url, { model, input, dimensions, ...more }, keyed) {
  const fields = { model, input, encoding_format: "float", ...(dimensions && { dimensions }) };
  if (Object.keys(more).length) fields.extra_body = more;
  const given = Object.entries(fields).map(([name, value]) => `    ${name}=${nested(value, "    ")},\n`);
  return `from openai import OpenAI

client = OpenAI(base_url=${literal(url.replace(/\/embeddings$/, ""))}, api_key="${keyed ? KEY : "none"}")
answer = client.embeddings.create(
${given.join("")})
print([item.embedding for item in answer.data])
`;
}

function javascript(url, body, keyed) {
  const key = keyed ? `, authorization: "Bearer ${KEY}"` : "";
  return `const response = await fetch(${literal(url)}, {
  method: "POST",
  headers: { "content-type": "application/json"${key} },
  body: JSON.stringify(${nested(body, "  ")}),
});
if (!response.ok) throw new Error(await response.text());
console.log((await response.json()).data.map((item) => item.embedding));
`;
}

const nested = (value, indent) => literal(value, indent.length).replaceAll("\n", `\n${indent}`);
