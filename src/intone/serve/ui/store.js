// Conversations and settings in this browser. A conversation is a tree: editing or trying again grows a branch.

const PREFIX = "intone.chat.";
const SETTINGS = "intone.settings";

export const DEFAULTS = Object.freeze({
  system: "", temperature: 0.6, top_p: 1, top_k: 50, max_tokens: 256, seed: null, tools: "server",
});

const newId = (letter) => letter + Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

export function newConversation() {
  return { format: 1, id: newId("c"), title: "", created: Date.now(), updated: Date.now(), nodes: {}, active: {} };
}

/** Adds a message under a parent (null: the beginning) and makes it the one that is shown there. */
export function addNode(conversation, parent, fields) {
  const node = { id: newId("m"), parent, created: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  conversation.active[parent ?? "root"] = node.id;
  conversation.updated = node.created;
  return node;
}

/** All versions that stand where this message stands, in the order in which they were made. */
export function versions(conversation, node) {
  return Object.values(conversation.nodes).filter((other) => other.parent === node.parent);
}

/** The messages that are shown, first to last. */
export function pathOf(conversation) {
  const path = [];
  for (let id = conversation.active.root; id && conversation.nodes[id]; id = conversation.active[id]) path.push(conversation.nodes[id]);
  return path;
}

/** What a person reads of a message. */
export function textOf(node) {
  return node.role === "user" ? node.text : node.parts.filter((part) => part.kind === "text").map((part) => part.text).join("");
}

/** The path as OpenAI messages: an answer with tools becomes turns of assistant and tool. */
export function asMessages(path, system = "") {
  const messages = system.trim() ? [{ role: "system", content: system.trim() }] : [];
  for (const node of path) {
    if (node.role === "user") messages.push({ role: "user", content: node.text });
    else messages.push(...answerMessages(node));
  }
  return messages;
}

function answerMessages(node) {
  const messages = [];
  let open = null;
  const turn = () => {
    if (!open) messages.push((open = { role: "assistant", content: "" }));
    return open;
  };
  for (const part of node.parts) {
    if (part.kind === "text") turn().content += part.text;
    else if (part.kind === "call") {
      (turn().tool_calls ??= []).push({ id: part.id, type: "function", function: { name: part.name, arguments: part.arguments ?? JSON.stringify({ input: part.input }) } });
    } else {
      messages.push({ role: "tool", tool_call_id: part.id, content: part.text });
      open = null;
    }
  }
  // an answer without words still is a turn
  return messages.length ? messages : [{ role: "assistant", content: "" }];
}

/** Keeps a conversation. False where the browser has no room or no storage. */
export function keep(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

/** All kept conversations, newest first; what cannot be read is left alone. */
export function keptConversations() {
  const found = [];
  try {
    for (let i = 0; i < localStorage.length; i += 1) {
      const key = localStorage.key(i);
      if (!key.startsWith(PREFIX)) continue;
      const conversation = parsed(localStorage.getItem(key));
      if (conversation) found.push(conversation);
    }
  } catch {
    // no storage
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export function keptConversation(id) {
  try {
    return parsed(localStorage.getItem(PREFIX + id));
  } catch {
    return null;
  }
}

export function forget(id) {
  localStorage.removeItem(PREFIX + id);
}

/** Calls changed() when another tab changed a conversation. */
export function onElsewhere(changed) {
  addEventListener("storage", (event) => (event.key === null || event.key.startsWith(PREFIX)) && changed());
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value?.format === 1 && value.nodes && value.active ? value : null;
  } catch {
    return null;
  }
}

export function keptSettings() {
  try {
    const kept = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
    return { ...DEFAULTS, ...Object.fromEntries(Object.entries(kept).filter(([name]) => name in DEFAULTS)) };
  } catch {
    return { ...DEFAULTS };
  }
}

export function keepSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // they hold until the page is left
  }
}

/** A conversation as a file for other programs: the messages as shown, and the whole tree. */
export function exported(conversation) {
  const { id, title, created, updated } = conversation;
  return { format: 1, kind: "intone conversation", id, title, created, updated, messages: asMessages(pathOf(conversation)), tree: conversation };
}
