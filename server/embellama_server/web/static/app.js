// Show one panel at a time, by the address's #name; its module is loaded when it is first shown.
//
// static/NAME.js exports default (section) => ({show, hide}): called once, then show() and hide() as it comes and goes.

import { api, askKey, errorNote, key } from "./lib.js";

const links = [...document.querySelectorAll("nav [data-panel]")];
const names = links.map((link) => link.hash.slice(1));
const panels = {};
let current = null;

async function show(name) {
  const section = document.getElementById(name);
  const focus = current !== null && current !== name; // not when the page comes
  if (current) panels[current]?.hide?.();
  current = name;
  for (const each of names) document.getElementById(each).hidden = each !== name;
  document.getElementById("docs")?.remove();
  for (const link of document.querySelectorAll("nav a")) link.removeAttribute("aria-current");
  const link = links[names.indexOf(name)];
  link.setAttribute("aria-current", "page");
  document.title = `${link.textContent} – embellama`;
  if (focus) document.getElementById("main").focus({ preventScroll: true });
  scrollTo(0, 0);
  try {
    panels[name] ??= (await import(`./${name}.js`)).default(section);
    if (current === name) panels[name].show?.();
  } catch (error) {
    section.append(errorNote(error));
  }
}

function route() {
  const name = location.hash.slice(1);
  if (names.includes(name) ? name !== current : current === null) show(names.includes(name) ? name : names[0]);
}

// With a key, the browser cannot open /docs by itself: it is for keys with admin.
async function showDocs(link) {
  const { body } = new DOMParser().parseFromString(await (await api("docs")).text(), "text/html");
  if (current) panels[current]?.hide?.();
  current = "";
  for (const name of names) document.getElementById(name).hidden = true;
  const section = document.createElement("section");
  section.id = "docs";
  section.append(...body.querySelector("main").childNodes);
  document.getElementById("docs")?.remove();
  document.getElementById("main").append(section);
  for (const each of links) each.removeAttribute("aria-current");
  link.setAttribute("aria-current", "page");
  history.pushState(null, "", "#docs");
}

addEventListener("hashchange", route);
document.querySelector("nav a:not([data-panel])").addEventListener("click", async (event) => {
  if (document.body.dataset.keys === "no") return;
  event.preventDefault();
  try {
    await showDocs(event.target);
  } catch (error) {
    document.getElementById(current || names[0]).prepend(errorNote(error));
  }
});
const change = document.getElementById("change-key");
change.hidden = !key();
change.addEventListener("click", () => askKey().then(() => location.reload(), () => {}));
route();
