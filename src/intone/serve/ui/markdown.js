// The little Markdown that models write, as elements made one by one: no HTML of the model is ever parsed.

import { copy, h, icon } from "/ui/dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*).*$/;
const ITEM = /^( *)([-*+]|\d{1,4}[.)]) +(.*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*?) *#* *$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const INLINE = /(`+)([^`]|[^`].*?[^`])\1(?!`)|(?<!\w)(\*\*|__)(?=\S)([^\n]+?)(?<=\S)\3(?!\w)|(?<![\w*])(\*|_)(?=[^\s*_])([^*_\n]+?)(?<=\S)\5(?![\w*])/g;

/** Shows a growing text in an element; parts that did not change keep their elements, selection and scroll. */
export class Prose {
  constructor(root) {
    this.root = root;
    this.shown = [];
  }

  set(text) {
    const blocks = blocksOf(text);
    let same = 0;
    while (same < blocks.length && same < this.shown.length && blocks[same].source === this.shown[same]) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    for (const block of blocks.slice(same)) this.root.append(element(block));
    this.shown = blocks.map((block) => block.source);
  }
}

/** The text as blocks {kind, source, ...}, in order. */
export function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const begin = at;
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = fenceAt(lines, at) ?? oneLineAt(lines, at) ?? listAt(lines, at) ?? quoteAt(lines, at) ?? paragraphAt(lines, at);
    at = block.end;
    // an unfinished fence and one that ends here look the same to the reader, and must not to the cache
    blocks.push({ ...block, source: `${block.kind}\n${lines.slice(begin, at).join("\n")}` });
  }
  return blocks;
}

function fenceAt(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const close = new RegExp(`^ {0,3}${open[1][0]}{${open[1].length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  return { kind: "code", language: open[2], code: lines.slice(at + 1, end).join("\n"), end: Math.min(end + 1, lines.length) };
}

function oneLineAt(lines, at) {
  const heading = HEADING.exec(lines[at]);
  if (heading) return { kind: "heading", level: heading[1].length, text: heading[2], end: at + 1 };
  return RULE.test(lines[at]) ? { kind: "rule", end: at + 1 } : null;
}

function listAt(lines, at) {
  const items = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    const item = ITEM.exec(lines[end]);
    if (item) items.push({ indent: item[1].length, mark: item[2], lines: [item[3]] });
    else if (items.length && lines[end].trim() && /^ {2,}/.test(lines[end])) items.at(-1).lines.push(lines[end].trim());
    else break;
  }
  return items.length ? { kind: "list", items, end } : null;
}

function quoteAt(lines, at) {
  const inside = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    const line = QUOTE.exec(lines[end]);
    if (!line) break;
    inside.push(line[1]);
  }
  return inside.length ? { kind: "quote", text: inside.join("\n"), end } : null;
}

function paragraphAt(lines, at) {
  let end = at + 1;
  const isOther = (line) => !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || QUOTE.test(line);
  while (end < lines.length && !isOther(lines[end])) end += 1;
  return { kind: "text", text: lines.slice(at, end).join("\n"), end };
}

function element(block) {
  switch (block.kind) {
    case "code": return codeBlock(block);
    case "heading": return h(`h${Math.min(block.level + 2, 6)}`, {}, inline(block.text));
    case "rule": return h("hr");
    case "list": return list(block.items);
    case "quote": return h("blockquote", {}, blocksOf(block.text).map((inner) => (inner.kind === "quote" ? h("p", {}, inline(inner.text)) : element(inner))));
    default: return h("p", {}, inline(block.text));
  }
}

function codeBlock({ language, code }) {
  const button = h("button", { type: "button", class: "small", "aria-label": "Copy the code", onclick: () => copy(code, button) }, icon("copy"), "Copy");
  return h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, language || "text"), button), h("pre", { tabindex: "0" }, h("code", {}, code)));
}

function list(items) {
  const isNumbered = /\d/.test(items[0].mark);
  const root = h(isNumbered ? "ol" : "ul", isNumbered ? { start: Number.parseInt(items[0].mark, 10) } : {});
  const base = items[0].indent;
  for (let at = 0; at < items.length; ) {
    let end = at + 1;
    while (end < items.length && items[end].indent > base + 1) end += 1;
    const inner = items.slice(at + 1, end);
    root.append(h("li", {}, inline(items[at].lines.join("\n")), inner.length ? list(inner) : null));
    at = end;
  }
  return root;
}

/** Nodes of a line: `code`, **bold**, *slanted*, and line ends. */
export function inline(text) {
  const nodes = [];
  let done = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(...plain(text.slice(done, match.index)));
    if (match[1]) nodes.push(h("code", {}, match[2]));
    else if (match[3]) nodes.push(h("strong", {}, inline(match[4])));
    else nodes.push(h("em", {}, match[6]));
    done = match.index + match[0].length;
  }
  nodes.push(...plain(text.slice(done)));
  return nodes;
}

function plain(text) {
  return text.split("\n").flatMap((line, number) => (number ? [h("br"), line] : [line]));
}
