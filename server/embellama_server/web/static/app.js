// Show the panel of the address's #name. static/NAME.js exports (section) => ({show, hide}), called as it comes and goes.

import { api, askKey, byId, errorNote, h, key } from "./lib.js";

const links = [...document.querySelectorAll("nav [data-panel]")];
const names = links.map((link) => link.hash.slice(1));
const panels = {};
let current = null;

// Leave the panel that is shown, for the one of a name or none, and mark its link.
function leave(name, link) {
  panels[current]?.hide?.();
  current = name;
  for (const each of names) byId(each).hidden = each !== name;
  byId("docs")?.remove();
  for (const each of document.querySelectorAll("nav a")) each.removeAttribute("aria-current");
  link.setAttribute("aria-current", "page");
  document.title = `${link.textContent} – embellama`;
}

async function show(name) {
  const section = byId(name);
  if (current !== null) byId("main").focus({ preventScroll: true }); // not when the page comes
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

// The browser itself sends no key, which /docs needs.
async function showDocs(link) {
  const { body } = new DOMParser().parseFromString(await (await api("docs")).text(), "text/html");
  leave("", link);
  byId("main").append(h("section", { id: "docs" }, ...body.querySelector("main").childNodes));
  history.pushState(null, "", "#docs");
}

addEventListener("hashchange", route);
document.querySelector("nav a:not([data-panel])").addEventListener("click", async (event) => {
  if (document.body.dataset.keys === "no") return;
  event.preventDefault();
  try {
    await showDocs(event.target);
  } catch (error) {
    byId(current || names[0]).prepend(errorNote(error));
  }
});
const change = byId("change-key");
change.hidden = !key();
change.addEventListener("click", () => askKey().then(() => location.reload(), () => {}));
route();
