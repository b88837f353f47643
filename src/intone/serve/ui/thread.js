// How messages look: words, tool calls as blocks of their own, what can be done with them, and what the answer cost.

import { copy, duration, h, icon, threeDigits } from "/ui/dom.js";
import { Prose } from "/ui/markdown.js";
import { textOf, versions } from "/ui/store.js";

const ENDS = { length: "cut at the most tokens", stopped: "stopped", interrupted: "interrupted" };

/** One message on the page. act: {edit(node, text), retry(node), show(version), again(node), askKey(node)}. */
export class MessageView {
  constructor(conversation, node, act) {
    this.conversation = conversation;
    this.node = node;
    this.act = act;
    this.words = h("div", { class: "words" });
    this.below = h("div", { class: "below" });
    const who = node.role === "user" ? "You" : "Answer";
    this.root = h("article", { class: `message ${node.role}`, role: "listitem", "aria-label": who }, this.words, this.below);
    this.parts = [];
    this.update();
  }

  /** Shows what the message is now; isLive while it is being written. */
  update({ isLive = false, waiting = "" } = {}) {
    this.root.classList.toggle("live", isLive);
    this.root.setAttribute("aria-busy", isLive);
    if (this.node.role === "user") this.words.textContent = this.node.text;
    else this.showParts(isLive, waiting);
    this.below.replaceChildren(...(isLive ? [] : this.foot()));
  }

  showParts(isLive, waiting) {
    const { parts } = this.node;
    for (let at = 0; at < parts.length; at += 1) {
      const shown = this.parts[at];
      const kind = parts[at].kind;
      if (shown?.kind === kind) shown.set(parts[at]);
      else {
        shown?.root.remove();
        const part = kind === "text" ? textPart(parts[at]) : kind === "call" ? callPart(parts[at]) : outputPart(parts[at]);
        this.words.insertBefore(part.root, this.parts[at + 1]?.root ?? null);
        this.parts[at] = part;
      }
    }
    for (const extra of this.parts.splice(parts.length)) extra.root.remove();
    this.wait?.remove();
    this.none?.remove();
    if (!isLive && !textOf(this.node) && !this.node.error) {
      this.none = h("p", { class: "waiting" }, "(no words)");
      this.words.append(this.none);
    }
    if (isLive && !parts.length) {
      this.wait = h("p", { class: "waiting" }, h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), waiting);
      this.words.append(this.wait);
    }
  }

  foot() {
    const { node } = this;
    const items = [];
    if (node.error) items.push(errorBox(node, this.act));
    const tools = h("div", { class: "tools" }, this.branches());
    const text = textOf(node);
    if (text) {
      const button = h("button", { type: "button", class: "quiet", "aria-label": "Copy", title: "Copy", onclick: () => copy(text, button) }, icon("copy"));
      tools.append(button);
    }
    if (node.role === "user") {
      tools.append(h("button", { type: "button", class: "quiet", "aria-label": "Edit", title: "Edit", onclick: () => this.edit() }, icon("edit")));
    } else {
      tools.append(h("button", { type: "button", class: "quiet", "aria-label": "Try again", title: "Try again", onclick: () => this.act.retry(node) }, icon("retry")));
      tools.append(h("span", { class: "cost" }, costOf(node)));
    }
    return [...items, tools];
  }

  branches() {
    const all = versions(this.conversation, this.node);
    if (all.length < 2) return null;
    const at = all.indexOf(this.node);
    const step = (to, name, label) => h("button", { type: "button", class: "quiet", "aria-label": label, title: label, disabled: !all[to], onclick: () => this.act.show(all[to]) }, icon(name));
    return h("span", { class: "versions" }, step(at - 1, "left", "Earlier version"), h("span", { "aria-label": `Version ${at + 1} of ${all.length}` }, `${at + 1} / ${all.length}`), step(at + 1, "right", "Later version"));
  }

  /** Turns the message into a field; sending makes another version, the one before stays. */
  edit() {
    const field = h("textarea", { "aria-label": "Edit the message", rows: "1" });
    field.value = this.node.text;
    const done = () => {
      form.replaceWith(this.words);
      this.below.hidden = false;
      this.below.querySelector('[aria-label="Edit"]')?.focus();
    };
    const send = (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (!text || text === this.node.text) done();
      else this.act.edit(this.node, text);
    };
    const form = h("form", { class: "editing", onsubmit: send }, field,
      h("div", { class: "buttons" }, h("span", {}, "The version before, with its answers, is kept."),
        h("button", { type: "button", onclick: done }, "Cancel"), h("button", { type: "submit", class: "primary" }, "Send")));
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        done();
      } else if (isSend(event)) send(event);
    });
    this.words.replaceWith(form);
    this.below.hidden = true;
    fit(field);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

/** Whether a key press means "send": Enter alone, not while an input method composes, not on a touch keyboard. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches;
}

/** As high as its text, up to a part of the window. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight * 0.4)}px`;
}

function textPart(part) {
  const root = h("div", { class: "prose" });
  const prose = new Prose(root);
  const set = ({ text }) => prose.set(text);
  set(part);
  return { kind: "text", root, set };
}

function callPart(part) {
  const name = h("span");
  const input = h("code");
  const root = h("div", { class: "tool call" }, h("div", { class: "tool-head" }, name), h("pre", { tabindex: "0" }, input));
  const set = (call) => {
    name.textContent = `${call.name} is asked`;
    input.textContent = call.input;
  };
  set(part);
  return { kind: "call", root, set };
}

function outputPart(part) {
  const text = h("code");
  const root = h("div", { class: "tool output" }, h("div", { class: "tool-head" }, "it answers"), h("pre", { tabindex: "0" }, text));
  const set = (output) => {
    root.classList.toggle("refused", output.text === null);
    text.textContent = output.text ?? "nothing: the tool refused this";
  };
  set(part);
  return { kind: "output", root, set };
}

function errorBox(node, act) {
  const { kind, message } = node.error;
  const name = kind === "key" ? "Enter the key" : "Try again";
  const run = () => (kind === "key" ? act.askKey(node) : act.again(node));
  return h("div", { class: "error", role: "alert" }, h("p", {}, message), h("button", { type: "button", onclick: run }, name));
}

/** "38 tokens, 212 tokens/s, first after 41 ms": what was measured, nothing else. */
export function costOf(node) {
  const words = [];
  const { tokens, tokens_per_s: rate, first_s: first, end } = node.cost ?? {};
  if (tokens) words.push(`${tokens.toLocaleString("en-US")} ${tokens === 1 ? "token" : "tokens"}`);
  if (rate) words.push(`${threeDigits(rate)} tokens/s`);
  if (first !== undefined && first !== null) words.push(`first after ${duration(first)}`);
  if (ENDS[end]) words.push(ENDS[end]);
  return words.join(" · ");
}
