// API: what /docs shows, for which the browser itself would send no key.

import { api, errorNote } from "./lib.js";

export default (section) => ({
  async show() {
    let shown;
    try {
      const { body } = new DOMParser().parseFromString(await (await api("docs")).text(), "text/html");
      shown = body.querySelector("main").childNodes;
    } catch (error) {
      shown = [section.querySelector("h1"), errorNote(error)];
    }
    section.replaceChildren(...shown);
  },
});
