// Show the panel of the address's #name. static/NAME.js exports (section) => ({show, hide}), called as it comes and goes.

import { askKey, byId, errorNote, key } from "./lib.js";

const links = [...document.querySelectorAll('nav a[href^="#"]')];
const names = links.map((link) => link.hash.slice(1));
const panels = {};
let current = null;

async function show(name) {
  if (current !== null) byId("main").focus({ preventScroll: true }); // not when the page comes
  scrollTo(0, 0);
  panels[current]?.hide?.();
  current = name;
  for (const each of names) byId(each).hidden = each !== name;
  for (const each of links) each.removeAttribute("aria-current");
  const [link, section] = [links[names.indexOf(name)], byId(name)];
  link.setAttribute("aria-current", "page");
  document.title = `${link.textContent} – embellama`;
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

addEventListener("hashchange", route);
const change = byId("change-key");
change.hidden = !key();
change.addEventListener("click", () => askKey().then(() => location.reload(), () => {}));
route();
