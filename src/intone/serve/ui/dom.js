// Elements made in one line, words for numbers, and the notes at the foot of the page. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("button", {class: "x", onclick: f}, "text", child). Falsy children are left out. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child || child === 0));
  return element;
}

const ICONS = {
  copy: "M9 9h10v11H9zM5 15V4h10",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  retry: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  trash: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  up: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  close: "M6 6l12 12M18 6L6 18",
  chat: "M4 5h16v11H10l-4 4v-4H4z",
  chart: "M4 4v16h16M8 15l4-5 3 3 5-7",
  check: "M5 13l4 4L19 7",
};

/** A line icon; what it means stands on the button around it. */
export function icon(name) {
  return s("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, s("path", { d: ICONS[name] }));
}

/** Puts icons where the HTML says data-icon="name". */
export function placeIcons(root = document) {
  for (const place of root.querySelectorAll("[data-icon]")) place.prepend(icon(place.dataset.icon));
}

/** A number with three significant digits: 0.0123, 3.21, 1,230. */
export function threeDigits(value) {
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(3)));
}

/** 443k, 2.61M; below 10,000 the number itself. */
export function count(value) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size && (unit !== "k" || Math.abs(value) >= 1e4)) return threeDigits(value / size) + unit;
  }
  return Math.round(value).toLocaleString("en-US");
}

/** GiB, or MiB below 0.1 GiB; null is "unknown". */
export function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  const gib = value / 2 ** 30;
  return gib >= 0.1 ? `${threeDigits(gib)} GiB` : `${threeDigits(value / 2 ** 20)} MiB`;
}

/** 45 s, 3 min 20 s, 2 h 5 min; null is "unknown". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${threeDigits(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 3600) return `${Math.round(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} days ${Math.floor((whole % 86400) / 3600)} h`;
}

/** How long ago: "just now", "5 min", "3 h", "2 days". */
export function ago(time) {
  const seconds = (Date.now() - time) / 1000;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

/** A note at the foot of the page for a few seconds, with one thing to do about it. */
export function note(words, action = null) {
  document.querySelector(".note")?.remove();
  const box = h("div", { class: "note", role: "status" }, h("span", {}, words));
  if (action) {
    box.append(h("button", { type: "button", class: "link", onclick: () => { box.remove(); action.run(); } }, action.name));
  }
  document.body.append(box);
  setTimeout(() => box.remove(), action ? 8000 : 3500);
}

/** Puts a text on the clipboard and says so on the button. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!copyOldWay(text)) {
      note("The browser did not let the page copy. Select the text and copy it by hand.");
      return;
    }
  }
  const before = button.querySelector(".icon");
  const done = icon("check");
  before?.replaceWith(done);
  button.dataset.done = "";
  setTimeout(() => {
    if (before) done.replaceWith(before);
    delete button.dataset.done;
  }, 1200);
}

// over plain http from another machine there is no navigator.clipboard
function copyOldWay(text) {
  const field = h("textarea", { class: "offscreen", readonly: true });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const worked = document.execCommand("copy");
  field.remove();
  focused?.focus?.();
  return worked;
}
