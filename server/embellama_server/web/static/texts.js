// A form for texts, one a line: typed, pasted, or read from a file that is dropped or picked; and for their model.

import { api, errorNote, h } from "./lib.js";

const MOST_BYTES = 8 << 20; // what a server takes in one body by default

// A form with a button that starts `work`, and cancels it while it runs. `work` gets the form's part of a body, its model
// as /v1/models has it, a signal that cancels, and a function that says how far it is; it returns what to show in `out`.
export function textForm(label, fields, work) {
  const [area, texts, open] = textField();
  const [model, prompt] = [choice("Model", []), choice("Prompt", [""])];
  const out = h("div", {});
  const told = h("span.muted", { role: "status" });
  let models = [];
  const chosen = () => models.find(({ id }) => id === model.field.value);
  const body = () => ({ model: model.field.value, input: texts(), ...(prompt.field.value && { prompt_name: prompt.field.value }) });
  const fill = ({ field }, words) => field.replaceChildren(...options(words));
  model.addEventListener("change", () => fill(prompt, ["", ...chosen().prompts]));
  const load = async () => { // again whenever the form is shown, for models come and go
    const { data } = await (await api("v1/models")).json();
    if (JSON.stringify(data) === JSON.stringify(models)) return;
    models = data;
    fill(model, data.map(({ id }) => id));
    model.field.dispatchEvent(new Event("change", { bubbles: true }));
  };
  let running;
  const run = async () => {
    if (running) return running.abort();
    const { signal } = (running = new AbortController());
    button.textContent = "Cancel";
    out.replaceChildren();
    try {
      out.append(...(await work(body(), chosen(), signal, (progress) => (told.textContent = progress))));
      told.textContent = "";
    } catch (error) {
      told.textContent = signal.aborted ? "Cancelled." : "";
      if (!signal.aborted) out.append(errorNote(error));
    }
    running = undefined;
    button.textContent = label;
  };
  const button = h("button", { type: "button", onclick: run }, label);
  const element = h("div.card.form", {}, area, open, h("div.row", {}, model, prompt, fields), h("div.row", {}, button, told));
  return { element, out, body, show: () => load().catch((error) => out.replaceChildren(errorNote(error))) };
}

const options = (words) => words.map((word) => h("option", { value: word }, word || "none"));

export function choice(label, words) {
  const field = h("select", {}, options(words));
  return Object.assign(h("label", {}, label, field), { field });
}

// A choice of which all words are seen.
export function pick(name, words) {
  const radio = (word, i) => h("label", {}, h("input", { type: "radio", name, value: word, checked: !i }), word);
  const element = h("fieldset.pick", { "aria-label": name }, words.map(radio));
  return Object.assign(element, { picked: () => element.querySelector(":checked").value });
}

function textField() {
  const told = h("span.muted", { role: "status" }, "0 texts");
  const texts = () => area.value.split(/\r?\n/).filter((line) => line.trim());
  const count = () => (told.textContent = texts().length === 1 ? "1 text" : `${texts().length} texts`);
  const read = async (given) => {
    file.value = "";
    try {
      if (given.size > MOST_BYTES) throw `has ${given.size} bytes; the limit is ${MOST_BYTES}`;
      area.value = new TextDecoder("utf-8", { fatal: true }).decode(await given.arrayBuffer());
      area.dispatchEvent(new Event("input", { bubbles: true }));
      if (!texts().length) throw "has no line with a text";
    } catch (error) {
      told.textContent = `${given.name} ${error instanceof TypeError ? "is not a text in UTF-8" : error}`;
    }
  };
  const ondrop = (event) => {
    const [given] = event.dataTransfer.files;
    if (!given) return; // a text, which the field takes by itself
    event.preventDefault();
    read(given);
  };
  const area = h("textarea", { rows: 6, dir: "auto", spellcheck: "false", oninput: count, ondrop });
  const file = h("input", { type: "file", hidden: true, onchange: () => read(file.files[0]) });
  const open = h("button.quiet", { type: "button", onclick: () => file.click() }, "Open a file …");
  return [h("label", {}, "Texts, one a line", area), texts, h("div.row", {}, open, file, told)];
}

// The beginning of a text, in whole characters as they are seen.
export function short(text, most) {
  const next = [...new Intl.Segmenter().segment(text.slice(0, 20 * most))][most];
  return next ? `${text.slice(0, next.index)}…` : text;
}
