// What panels share: elements, requests with a key, server-sent events, numbers as text.

const SVG = "http://www.w3.org/2000/svg";
// The server's address, below whatever path a proxy serves it.
export const BASE = new URL("../", import.meta.url);

function make(node, given) {
  const [first, ...others] = given;
  const named = first?.constructor === Object;
  for (const [name, value] of Object.entries(named ? first : {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...(named ? others : given).flat(9).filter((child) => child != null && child !== false));
  return node;
}

// h("td.n", {title: "…", onclick: f}, "text", node, [more]), or without attributes: strings are text, never HTML.
export function h(tag, ...given) {
  const [name, ...classes] = tag.split(".");
  const node = make(document.createElement(name), given);
  if (classes.length) node.className = classes.join(" ");
  return node;
}

export const svg = (tag, ...given) => make(document.createElementNS(SVG, tag), given);

export const byId = (id) => document.getElementById(id);

export const card = (title, ...children) => h("article.card", h("h2", title), children);

const failure = (status, message, id) => Object.assign(new Error(message), { status, id });

const KEY = "embellama-key";
export const key = () => sessionStorage.getItem(KEY);
let asking = null;

// Ask for a key; all who need one meanwhile wait with it.
export function askKey(why = "") {
  asking ??= new Promise((resolve, reject) => {
    const dialog = byId("ask-key");
    const [form, note] = [dialog.querySelector("form"), dialog.querySelector("[role=alert]")];
    note.textContent = why;
    note.hidden = !why;
    form.reset();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, form.elements.key.value.trim());
      byId("change-key").hidden = false;
      dialog.onclose = null;
      dialog.close();
      resolve();
    };
    dialog.onclose = () => reject(failure(401, "No key was given."));
    form.querySelector("[value=cancel]").onclick = () => dialog.close();
    dialog.showModal();
  }).finally(() => (asking = null));
  return asking;
}

// api("v1/embeddings", {json: {…}, signal}) gives a Response, or throws an error that says why.
export async function api(path, { json, headers, ...options } = {}) {
  if (document.body.dataset.keys === "yes" && !key()) await askKey();
  for (;;) {
    const sent = { ...headers };
    const used = key();
    if (used) sent.authorization = `Bearer ${used}`;
    if (json !== undefined) {
      Object.assign(options, { method: "POST", body: JSON.stringify(json) });
      sent["content-type"] = "application/json";
    }
    const answer = await fetch(new URL(path, BASE), { ...options, headers: sent }).catch((error) => {
      throw options.signal?.aborted ? error : new Error("The server does not answer");
    });
    if (answer.ok) return answer;
    const text = await answer.text();
    let told = text || answer.statusText;
    try {
      const { error, message } = JSON.parse(text);
      told = String(error?.message ?? error ?? message ?? told);
    } catch {}
    if (answer.status !== 401) throw failure(answer.status, told, answer.headers.get("x-request-id"));
    if (used === key()) await askKey(told);
  }
}

export const errorNote = (error) =>
  h("p.note.bad", { role: "alert" }, error.status ? `${error.status}: ` : "", error.message,
    error.id && [" Request ", h("code", error.id)]);

// Read server-sent events until `signal` aborts, connecting again when they end; `onState` gets null while they come, or
// the error. (EventSource cannot send a key.)
export async function events(path, signal, onEvent, onState) {
  for (let pause = 500; !signal.aborted; pause = Math.min(2 * pause, 5000)) {
    try {
      const answer = await api(path, { signal, headers: { accept: "text/event-stream" } });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const [, name, data] = /^event: (.*)\ndata: (.*)$/.exec(part) ?? [];
          if (name) onEvent(name, JSON.parse(data));
        }
        onState(null);
        pause = 500;
      }
      throw new Error("The server ended the stream");
    } catch (error) {
      if (signal.aborted) return;
      if (error.status && error.status < 500) return onState(error);
      onState(error.status ? error : new Error(`${error.message}; asking again …`));
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

export const number = (value, digits = 0) =>
  value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
export const rounded = (value) => number(value, value < 10 ? 1 : 0);
export const ms = (value) => (value == null ? "–" : `${rounded(value)} ms`);
export function bytes(value) {
  if (!value) return value === 0 ? "0" : "–";
  const i = Math.min(Math.floor(Math.log(value) / Math.log(1000)), 4);
  return `${number(value / 1000 ** i, i > 2 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][i]}`;
}

// A bar beside a number that says the same; 1 is full.
export const bar = (share) => h("progress.bar", { max: 1, value: share, "aria-hidden": "true" });

// Make `old` as `next`, but keep what is the same: focus and selection stay.
export function patch(old, next) {
  if (old.nodeName !== next.nodeName) return old.replaceWith(next);
  if (old.nodeType === Node.TEXT_NODE) return old.data !== next.data && (old.data = next.data);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  const [has, wants] = [[...old.childNodes], [...next.childNodes]];
  wants.forEach((child, i) => (i < has.length ? patch(has[i], child) : old.append(child)));
  for (const child of has.slice(wants.length)) child.remove();
}

// A table of cells; columns whose head is written as "name#" hold numbers.
export function table(caption, heads, rows) {
  const cls = heads.map((head) => (head.endsWith("#") ? ".n" : ""));
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": caption },
    h("table",
      h("thead", h("tr", heads.map((head, i) => h(`th${cls[i]}`, { scope: "col" }, head.replace("#", ""))))),
      h("tbody", rows.map((row) => h("tr", row.map((cell, i) => h(`td${cls[i]}`, cell)))))));
}
