"use strict";
// Sets light or dark before the page is painted, and makes the switch work. A plain script: modules run too late.
(() => {
  const KEY = "intone.theme";
  const NAMES = { system: "as the system", light: "light", dark: "dark" };
  const read = () => {
    try {
      const kept = localStorage.getItem(KEY);
      return kept in NAMES ? kept : "system";
    } catch {
      return "system"; // storage is off: the page still works
    }
  };
  const apply = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.dataset.now = theme;
      button.setAttribute("aria-label", `Colours: ${NAMES[theme]}. Change`);
      button.title = `Colours: ${NAMES[theme]}`;
    }
  };
  apply(read());
  addEventListener("storage", (event) => event.key === KEY && apply(read()));
  document.addEventListener("DOMContentLoaded", () => {
    apply(read());
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.addEventListener("click", () => {
        const all = Object.keys(NAMES);
        const next = all[(all.indexOf(read()) + 1) % all.length];
        try {
          localStorage.setItem(KEY, next);
        } catch {
          // not kept, but shown
        }
        apply(next);
      });
    }
  });
})();
