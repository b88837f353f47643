// The list of conversations: open, rename, delete (with a way back), export.

import { ago, h, icon, note } from "/ui/dom.js";
import * as store from "/ui/store.js";

/** Draws the list. act: {open(id), changed(conversation), deleted(id), restored(conversation)}. */
export function drawList(root, conversations, current, act) {
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  root.replaceChildren(...conversations.map((conversation) => row(conversation, conversation.id === current, act)));
  if (!conversations.length) root.append(h("li", { class: "none" }, "Conversations stay in this browser and appear here."));
  if (focused) root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function row(conversation, isCurrent, act) {
  const name = conversation.title || "Untitled";
  const open = h("button", { type: "button", class: "open", "data-key": `open ${conversation.id}`, "aria-current": isCurrent ? "true" : null, onclick: () => act.open(conversation.id) },
    h("span", { class: "name" }, name), h("span", { class: "when" }, ago(conversation.updated)));
  const button = (picture, label, run) => h("button", { type: "button", class: "quiet", "aria-label": `${label}: ${name}`, title: label, onclick: run }, icon(picture));
  const item = h("li", { class: isCurrent ? "current" : null }, open, h("span", { class: "row-tools" },
    button("edit", "Rename", () => rename(item, conversation, act)),
    button("save", "Export as JSON", () => download(`intone-${slug(name)}.json`, store.exported(conversation))),
    button("trash", "Delete", () => remove(conversation, act))));
  return item;
}

function rename(item, conversation, act) {
  const field = h("input", { type: "text", class: "renaming", "aria-label": "Name of the conversation", maxlength: "120" });
  field.value = conversation.title;
  let isOver = false;
  const finish = (isKept) => {
    if (isOver) return;
    isOver = true;
    if (isKept && field.value.trim()) {
      Object.assign(conversation, { title: field.value.trim(), isNamed: true });
      store.keep(conversation);
    }
    act.changed(conversation);
    document.querySelector(`[data-key="${CSS.escape(`open ${conversation.id}`)}"]`)?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
    if (event.key === "Enter" || event.key === "Escape") event.stopPropagation();
  });
  field.addEventListener("blur", () => finish(true));
  item.replaceChildren(field);
  field.focus();
  field.select();
}

function remove(conversation, act) {
  store.forget(conversation.id);
  act.deleted(conversation.id);
  note(`Deleted "${conversation.title || "Untitled"}".`, {
    name: "Undo",
    run: () => {
      store.keep(conversation);
      act.restored(conversation);
    },
  });
}

const slug = (name) => name.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40).replace(/^-|-$/g, "") || "chat";

/** Saves an object as a JSON file. */
export function download(name, value) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
