// Show one panel at a time, by the address's #name. static/NAME.js exports default (section) => ({show, hide}): called once,
// then show() and hide() as it comes and goes.

import { api, askKey, errorNote, h, key } from "./lib.js";

const links = [...document.querySelectorAll("nav [data-panel]")];
const names = links.map((link) => link.hash.slice(1));
const panels = {};
let current = null;

// Leave the panel that is shown, for the one of a name or none, and mark its link.
function leave(name, link) {
  panels[current]?.hide?.();
  current = name;
  for (const each of names) document.getElementById(each).hidden = each !== name;
  document.getElementById("docs")?.remove();
  for (const each of document.querySelectorAll("nav a")) each.removeAttribute("aria-current");
  link.setAttribute("aria-current", "page");
  document.title = `${link.textContent} – embellama`;
}

async function show(name) {
  const section = document.getElementById(name);
  if (current !== null) document.getElementById("main").focus({ preventScroll: true }); // not when the page comes
  leave(name, links[names.indexOf(name)]);
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
  leave("", link);
  document.getElementById("main").append(h("section", { id: "docs" }, ...body.querySelector("main").childNodes));
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
