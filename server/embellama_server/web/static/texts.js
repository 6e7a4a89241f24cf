// A form for texts, one a line: typed, pasted, or read from a file that is dropped or picked; and for their model.

import { api, errorNote, h } from "./lib.js";

const MOST_BYTES = 8 << 20; // what a server takes in one body by default

// Its button starts `work`, or cancels it: by a signal. `work` gets the form's part of a body, the model as /v1/models has
// it, and a function that says how far it is, too; it returns what to show in `out`.
export function textForm(label, fields, work) {
  const [elements, texts] = textField();
  const [model, prompt] = [choice("Model", []), choice("Prompt", [""])];
  const out = h("div");
  const told = h("span.muted", { role: "status" });
  let [models, known, running] = [[]];
  const chosen = () => models.find(({ id }) => id === model.field.value);
  const body = () => ({ model: model.field.value, input: texts(), prompt_name: prompt.field.value || undefined });
  model.onchange = () => prompt.fill(["", ...chosen().prompts]);
  const load = async () => { // each time it is shown: models come and go
    const text = await (await api("v1/models")).text();
    if (text === known) return;
    models = JSON.parse((known = text)).data;
    model.fill(models.map(({ id }) => id));
    model.field.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const run = async () => {
    if (running) return running.abort();
    const { signal } = (running = new AbortController());
    button.textContent = "Cancel";
    told.textContent = "…";
    out.replaceChildren();
    try {
      out.append(...(await work(body(), chosen(), signal, (progress) => (told.textContent = progress))));
      told.textContent = "";
    } catch (error) {
      told.textContent = signal.aborted ? "Cancelled." : "";
      if (!signal.aborted) out.append(errorNote(error));
    }
    running = null;
    button.textContent = label;
  };
  const button = h("button", { onclick: run }, label);
  const rows = [h("div.row", model, prompt, fields), h("div.row", button, told)];
  const show = () => load().catch((error) => out.replaceChildren(errorNote(error)));
  return { element: h("div.card.form", elements, rows), out, body, prompt, show };
}

export function choice(label, words) {
  const field = h("select");
  const fill = (all) => field.replaceChildren(...all.map((word) => h("option", { value: word }, word || "none")));
  fill(words);
  return Object.assign(h("label", label, field), { field, fill });
}

function textField() {
  const told = h("span.muted", { role: "status" }, "0 texts");
  const texts = () => area.value.split(/\r?\n/).filter((line) => line.trim());
  const count = () => (told.textContent = texts().length === 1 ? "1 text" : `${texts().length} texts`);
  const read = async (given) => {
    file.value = "";
    const tell = (wrong) => (told.textContent = `${given.name} ${wrong}`);
    if (given.size > MOST_BYTES) return tell(`has ${given.size} bytes; the limit is ${MOST_BYTES}`);
    try {
      area.value = new TextDecoder("utf-8", { fatal: true }).decode(await given.arrayBuffer());
    } catch {
      return tell("is not a text in UTF-8");
    }
    area.dispatchEvent(new Event("input", { bubbles: true }));
    if (!texts().length) tell("has no line with a text");
  };
  const ondrop = (event) => {
    const [given] = event.dataTransfer.files;
    if (!given) return; // a text: the field takes it
    event.preventDefault();
    read(given);
  };
  const area = h("textarea", { rows: 6, dir: "auto", spellcheck: "false", oninput: count, ondrop });
  const file = h("input", { type: "file", hidden: true, onchange: () => read(file.files[0]) });
  const open = h("button.quiet", { onclick: () => file.click() }, "Open a file …");
  return [[h("label", "Texts, one a line", area), h("div.row", open, file, told)], texts];
}

// The beginning of a text, in whole characters as they are seen.
export function short(text, most) {
  const next = [...new Intl.Segmenter().segment(text.slice(0, 20 * most))][most];
  return next ? `${text.slice(0, next.index)}…` : text;
}
