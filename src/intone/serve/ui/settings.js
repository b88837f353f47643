// The settings of answers: what is drawn and how long, each with its meaning, kept in this browser.

import { h, icon, note } from "/ui/dom.js";
import * as api from "/ui/api.js";
import * as store from "/ui/store.js";
import { download } from "/ui/sidebar.js";

const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, slides: true, help: "0 always takes the likeliest token; higher varies more." },
  { name: "top_p", label: "Top-p", min: 0.01, max: 1, step: 0.01, slides: true, help: "Draws among the likeliest tokens that make up this share; 1: all." },
  { name: "top_k", label: "Top-k", min: 1, max: 100000, step: 1, isOpen: "all", help: "Draws among this many of the likeliest tokens; empty: all." },
  { name: "max_tokens", label: "Most tokens", min: 1, max: 1000000, step: 1, isOpen: "what fits", help: "The longest answer; empty: as many as the context leaves." },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 31 - 1, step: 1, isOpen: "random", help: "The same seed gives the same answer; empty: a new one each time." },
];

/** The panel. changed() is called after every change; value holds the settings. */
export class Settings {
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.value = store.keptSettings();
    this.draw();
  }

  set(name, value) {
    this.value = { ...this.value, [name]: value };
    store.keepSettings(this.value);
    this.changed();
  }

  draw() {
    const system = h("textarea", { id: "set-system", rows: "3", placeholder: "For example: Answer in one short sentence." });
    system.value = this.value.system;
    system.addEventListener("input", () => this.set("system", system.value));
    const tools = h("select", { id: "set-tools" }, [["server", "As the server was started"], ["calculator", "Calculator"], ["python", "Calculator and Python"], ["none", "None"]].map(([value, name]) => h("option", { value }, name)));
    tools.value = this.value.tools;
    tools.addEventListener("change", () => this.set("tools", tools.value));
    this.root.replaceChildren(
      h("div", { class: "panel-head" }, h("h2", {}, "Settings"), h("button", { type: "button", class: "quiet", id: "close-settings", "aria-label": "Close the settings" }, icon("close"))),
      h("div", { class: "field" }, h("label", { for: "set-system" }, "System prompt"), system, h("p", {}, "Stands before your first message in every conversation.")),
      ...NUMBERS.map((entry) => this.number(entry)),
      h("div", { class: "field" }, h("label", { for: "set-tools" }, "Tools"), tools, h("p", {}, "What the model may call. Python runs in a sandbox, where the server has one.")),
      h("div", { class: "panel-foot" },
        h("button", { type: "button", onclick: () => this.reset() }, "Back to the defaults"),
        h("button", { type: "button", onclick: () => exportAll() }, "Export all conversations"),
        api.keptKey() ? h("button", { type: "button", onclick: () => { api.useKey(null); this.draw(); note("The key is forgotten."); } }, "Forget the key") : null),
    );
  }

  number(entry) {
    const id = `set-${entry.name}`;
    const field = h("input", { id, type: "number", min: entry.min, max: entry.max, step: entry.slides ? "any" : entry.step, inputmode: "decimal", placeholder: entry.isOpen ?? "", "aria-describedby": `${id}-help` });
    const value = this.value[entry.name];
    field.value = value ?? "";
    const slider = entry.slides ? h("input", { type: "range", min: entry.min, max: entry.max, step: entry.step, "aria-label": entry.label, tabindex: "-1" }) : null;
    if (slider) slider.value = value;
    const help = h("p", { id: `${id}-help` }, entry.help);
    const take = () => {
      const number = field.value === "" && entry.isOpen && !field.validity.badInput ? null : field.valueAsNumber;
      const isGood = number === null || (Number.isFinite(number) && number >= entry.min && number <= entry.max && (entry.slides || Number.isInteger(number)));
      field.setAttribute("aria-invalid", !isGood);
      const kind = entry.slides ? "a number" : "a whole number";
      help.textContent = isGood ? entry.help : `This must be ${kind} from ${entry.min.toLocaleString("en-US")} to ${entry.max.toLocaleString("en-US")}; ${this.value[entry.name] ?? entry.isOpen} is used.`;
      if (!isGood) return;
      if (slider && number !== null) slider.value = number;
      this.set(entry.name, number);
    };
    field.addEventListener("input", take);
    slider?.addEventListener("input", () => { field.value = slider.value; take(); });
    return h("div", { class: "field" }, h("div", { class: "field-line" }, h("label", { for: id }, entry.label), field), slider, help);
  }

  reset() {
    this.value = { ...store.DEFAULTS };
    store.keepSettings(this.value);
    this.draw();
    this.changed();
    this.root.querySelector("button")?.focus();
  }

  /** The fields of a request. seed null: a new one for each answer. */
  forRequest() {
    const { temperature, top_p, top_k, max_tokens, seed, tools } = this.value;
    // top_k null is said: left out it would be the server's own
    // a person wants a word, also where the model would end its turn at once
    const fields = { temperature, top_p, top_k, min_tokens: 1, seed: seed ?? Math.floor(Math.random() * 2 ** 31) };
    if (max_tokens !== null) fields.max_tokens = max_tokens;
    if (tools !== "server") fields.builtin_tools = { none: [], calculator: ["calculator"], python: ["calculator", "python"] }[tools];
    return fields;
  }
}

function exportAll() {
  const all = store.keptConversations();
  if (!all.length) note("There is no conversation to export.");
  else download("intone-conversations.json", { format: 1, kind: "intone conversations", conversations: all.map(store.exported) });
}
