// The chat page: one conversation on the screen, answers that stream in, and what the keyboard does.

import * as api from "/ui/api.js";
import { h, icon, note, placeIcons } from "/ui/dom.js";
import { EXAMPLES } from "/ui/examples.js";
import { askKey } from "/ui/key.js";
import { Settings } from "/ui/settings.js";
import { drawList } from "/ui/sidebar.js";
import * as store from "/ui/store.js";
import { MessageView, fit, isSend } from "/ui/thread.js";

const $ = (id) => document.getElementById(id);
const KEEP_EVERY_MS = 1000; // how much of an answer a crash of the browser may lose
const NEAR_PX = 80; // this close to the end counts as reading along
const LOADING = "The model is loading ...";
const LOADING_MS = 500; // between two looks at a server that loads its model: a small one takes a second or two

const state = { conversation: store.newConversation(), models: [], model: "", live: null, views: new Map(), follows: true };
const settings = new Settings($("settings"), () => {});

// --- the screen -------------------------------------------------------------------------------------------------------

const act = {
  edit: (node, text) => begin(store.addNode(state.conversation, node.parent, { role: "user", text })),
  retry: (node) => begin(state.conversation.nodes[node.parent]),
  again: (node) => begin(state.conversation.nodes[node.parent], node),
  askKey: (node) => askKey(() => begin(state.conversation.nodes[node.parent], node)),
  show: (version) => {
    if (state.live) return;
    state.conversation.active[version.parent ?? "root"] = version.id;
    store.keep(state.conversation);
    draw();
    state.views.get(version.id)?.root.querySelector(".versions button:not(:disabled)")?.focus();
  },
};

function draw() {
  const path = store.pathOf(state.conversation);
  state.views = new Map(path.map((node) => [node.id, new MessageView(state.conversation, node, act)]));
  const shown = [];
  const forgotten = path.findLast((node) => node.role === "assistant")?.forgotten ?? 0;
  for (const [at, node] of path.entries()) {
    if (at === forgotten && forgotten) shown.push(h("p", { class: "cut" }, `The model no longer sees what is above: its context${contextWords()} is full.`));
    shown.push(state.views.get(node.id).root);
  }
  $("thread").replaceChildren(...shown);
  if (state.live) state.views.get(state.live.answer.id)?.update({ isLive: true, waiting: state.live.waiting });
  $("empty").hidden = path.length > 0;
  const name = state.conversation.title || "New chat";
  $("title").textContent = name;
  document.title = path.length ? `${name} – intone` : "intone";
  toEnd(true);
  if (!path.length) scroll.scrollTop = 0;
}

function contextWords() {
  const context = state.models.find((model) => model.id === state.model)?.context;
  return context ? ` of ${context.toLocaleString("en-US")} tokens` : "";
}

function list() {
  drawList($("conversations"), store.keptConversations(), state.conversation.id, {
    open: (id) => open(store.keptConversation(id)),
    changed: (conversation) => {
      if (conversation.id === state.conversation.id) {
        Object.assign(state.conversation, { title: conversation.title, isNamed: conversation.isNamed });
        draw();
      }
      list();
    },
    deleted: (id) => (id === state.conversation.id ? open(null) : list()),
    restored: (conversation) => open(conversation),
  });
}

function open(conversation) {
  stop();
  state.conversation = conversation ?? store.newConversation();
  history.replaceState(null, "", conversation ? `#${conversation.id}` : location.pathname + location.search);
  showSidebar(false);
  draw();
  list();
  $("words").focus();
}

const scroll = $("scroll");

function toEnd(isForced = false) {
  if (isForced) state.follows = true;
  if (state.follows) scroll.scrollTop = scroll.scrollHeight;
  $("newest").hidden = state.follows;
}

const isNear = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_PX;
let lastTop = 0;
scroll.addEventListener("scroll", () => {
  // going up by any amount means "let me read"; growth of the text alone never does
  if (scroll.scrollTop < lastTop - 2 && !isNear()) state.follows = false;
  else if (isNear()) state.follows = true;
  lastTop = scroll.scrollTop;
  $("newest").hidden = state.follows;
}, { passive: true });
new ResizeObserver(() => toEnd()).observe(scroll);
$("newest").addEventListener("click", () => {
  toEnd(true);
  $("words").focus();
});

// --- asking and answering ---------------------------------------------------------------------------------------------

/** Answers a message of the user. node: the failed answer to be tried again in its place. */
async function begin(question, node = null) {
  if (state.live) return;
  const conversation = state.conversation;
  const before = node?.forgotten ?? store.pathOf(conversation).findLast((other) => other.role === "assistant" && other.id !== node?.id)?.forgotten ?? 0;
  const answer = node ?? store.addNode(conversation, question.id, { role: "assistant" });
  Object.assign(answer, { parts: [], cost: { end: "interrupted" }, error: null, forgotten: before, model: state.model });
  const live = { conversation, answer, abort: new AbortController(), asked_ms: performance.now(), waiting: "", forgotten: before };
  state.live = live;
  if (!conversation.title) conversation.title = titleOf(question.text);
  history.replaceState(null, "", `#${conversation.id}`);
  kept(conversation);
  draw();
  list();
  showSend();
  say("Asked.");
  try {
    await answered(live);
  } catch (error) {
    if (error.name === "AbortError") answer.cost.end = "stopped";
    else {
      answer.cost.end = answer.parts.length ? "interrupted" : null;
      answer.error = { kind: error.kind ?? "failed", message: error.message };
      if (!(error instanceof api.ApiError)) console.error(error);
    }
  }
  finish(live);
}

async function answered(live) {
  for (;;) {
    try {
      await api.streamAnswer(requestOf(live), { signal: live.abort.signal, onEvent: (event) => take(live, event) });
      return;
    } catch (error) {
      if (live.answer.parts.length) throw error;
      if (error.kind === "busy") await waitFor(live, error);
      else if (error.kind === "loading") await waitForModel(live);
      else if (error.kind === "context" && forgetOldest(live)) continue;
      else if (error.kind === "model" && (await loaded(live))) continue;
      else throw error;
    }
  }
}

function requestOf(live) {
  const { conversation, answer } = live;
  const path = store.pathOf(conversation);
  const before = path.slice(answer.forgotten, path.indexOf(answer));
  while (before.length > 2 && !leavesRoom(before)) {
    before.splice(0, 2);
    answer.forgotten += 2;
  }
  live.prompt_letters = lettersOf(before);
  if (live.forgotten !== answer.forgotten) {
    live.forgotten = answer.forgotten;
    draw();
  }
  return { model: state.model || undefined, messages: store.asMessages(before, settings.value.system), ...settings.forRequest() };
}

/** Whether a quarter of the context stays for the answer, by the letters per token of the answer before. */
function leavesRoom(messages) {
  const context = state.models.find((model) => model.id === state.model)?.context;
  const known = messages.findLast((node) => node.cost?.prompt_letters && node.cost.prompt_tokens);
  if (!context || !known) return true;
  const { prompt_letters: letters, prompt_tokens: tokens } = known.cost;
  return lettersOf(messages) * (tokens / letters) < 0.75 * context;
}

const lettersOf = (messages) => messages.reduce((sum, node) => sum + (node.role === "user" ? node.text : node.parts.map((part) => part.text ?? part.input).join("")).length, settings.value.system.length);

/** Has the server load a run that it does not hold (any more). False where that was tried, or the model is no run. */
async function loaded(live) {
  const [name, stage] = state.model.split("/");
  if (live.isLoaded || !stage) return false;
  live.isLoaded = true;
  live.waiting = `${state.model} is being loaded ...`;
  paint(live);
  state.model = (await api.loadRun(name, stage, live.abort.signal)).model;
  live.waiting = "";
  live.asked_ms = performance.now();
  return true;
}

/** Leaves out the oldest question with its answer. False where only the last question is left. */
function forgetOldest({ conversation, answer }) {
  const path = store.pathOf(conversation);
  if (answer.forgotten + 2 >= path.indexOf(answer)) return false;
  answer.forgotten += 2;
  return true;
}

/** Waits as long as the busy server asked for, counting down. */
async function waitFor(live, { retryAfter_s: wait_s }) {
  for (let left_s = Math.min(wait_s, 60); left_s > 0; left_s -= 1) {
    live.waiting = `The server is busy. Trying again in ${Math.ceil(left_s)} s; Escape gives up.`;
    paint(live);
    await pause(Math.min(1, left_s) * 1000, live.abort.signal);
  }
  live.waiting = "";
  live.asked_ms = performance.now();
}

/** Waits a moment for a server that is still loading its model. */
async function waitForModel(live) {
  live.waiting = LOADING;
  paint(live);
  await pause(LOADING_MS, live.abort.signal);
  live.waiting = "";
  live.asked_ms = performance.now();
}

function pause(time_ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, time_ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

function take(live, event) {
  const { answer } = live;
  const now_ms = performance.now();
  if (event.text || event.call) {
    live.first_ms ??= now_ms;
    live.last_ms = now_ms;
    answer.cost.first_s = (live.first_ms - live.asked_ms) / 1000;
  }
  const last = answer.parts.at(-1);
  if (event.text && last?.kind === "text") last.text += event.text;
  else if (event.text) answer.parts.push({ kind: "text", text: event.text });
  else if (event.call) {
    const open = answer.parts.find((part) => part.kind === "call" && part.id === event.call.id);
    if (open) Object.assign(open, event.call);
    else answer.parts.push({ kind: "call", ...event.call });
  } else if (event.output) answer.parts.push({ kind: "output", ...event.output });
  else if (event.finish) answer.cost.end = event.finish;
  else if (event.usage) {
    answer.cost.tokens = event.usage.completion_tokens;
    answer.cost.prompt_tokens = event.usage.prompt_tokens;
    answer.cost.prompt_letters = live.prompt_letters;
    const seconds = (live.last_ms - live.first_ms) / 1000;
    // between the first and the last piece; an answer of a few tokens says nothing about the rate
    if (answer.cost.tokens > 8 && seconds > 0.02) answer.cost.tokens_per_s = (answer.cost.tokens - 1) / seconds;
  }
  if (now_ms - (live.kept_ms ?? 0) > KEEP_EVERY_MS) {
    live.kept_ms = now_ms;
    kept(live.conversation);
  }
  paint(live);
}

/** Shows the growing answer with the next frame, however many pieces come before it. */
function paint(live) {
  live.isDue ||= requestAnimationFrame(() => {
    live.isDue = 0;
    if (state.live !== live) return;
    state.views.get(live.answer.id)?.update({ isLive: true, waiting: live.waiting });
    toEnd();
  });
}

function finish(live) {
  const { answer, conversation } = live;
  if (state.live === live) state.live = null;
  conversation.updated = Date.now();
  kept(conversation);
  if (state.conversation === conversation) {
    state.views.get(answer.id)?.update();
    toEnd();
    say(answer.error ? `Error: ${answer.error.message}` : store.textOf(answer) || "The answer is empty.");
  }
  list();
  showSend();
  if (answer.error?.kind === "offline") connect();
}

function stop() {
  state.live?.abort.abort();
}

function kept(conversation) {
  if (store.keep(conversation)) return;
  if (!state.isFull) note("The browser has no room left for conversations. Export and delete some; this one is not kept.");
  state.isFull = true;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}...` : line;
}

/** For screen readers: whole sentences, not every token. */
function say(words) {
  $("spoken").textContent = words;
}

// --- the message box --------------------------------------------------------------------------------------------------

function showSend() {
  const label = state.live ? "Stop" : "Send";
  $("send").replaceChildren(icon(state.live ? "stop" : "up"));
  $("send").setAttribute("aria-label", label);
  $("send").title = state.live ? "Stop (Escape)" : "Send (Enter)";
  $("send").disabled = !state.live && !$("words").value.trim();
  $("words").placeholder = state.live ? "The answer is coming ..." : "Message";
}

function submit() {
  const text = $("words").value.trim();
  if (!text || state.live) return;
  $("words").value = "";
  fit($("words"));
  const last = store.pathOf(state.conversation).at(-1);
  // a question that never got an answer is asked anew, since two in a row would confuse the model
  const parent = last?.role === "user" ? last.parent : last?.role === "assistant" && last.error && !last.parts.length ? state.conversation.nodes[last.parent].parent : last?.id ?? null;
  begin(store.addNode(state.conversation, parent, { role: "user", text }));
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.live) stop();
  else submit();
});
$("words").addEventListener("input", () => {
  fit($("words"));
  showSend();
});
$("words").addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !$("words").value && !state.live) {
    const asked = store.pathOf(state.conversation).findLast((node) => node.role === "user");
    if (!asked) return;
    event.preventDefault();
    state.views.get(asked.id).edit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("key-dialog").open) return;
  if (document.body.classList.contains("with-sidebar")) showSidebar(false);
  else if (state.live) stop();
  else if (!$("settings").hidden) showSettings(false);
});

// --- panels -----------------------------------------------------------------------------------------------------------

function showSidebar(isOpen) {
  const isNarrow = matchMedia("(max-width: 860px)").matches;
  const wasOpen = document.body.classList.contains("with-sidebar");
  document.body.classList.toggle("with-sidebar", isNarrow && isOpen);
  $("sidebar").inert = isNarrow && !isOpen;
  $("scrim").hidden = !(isNarrow && isOpen);
  $("open-sidebar").setAttribute("aria-expanded", isNarrow && isOpen);
  if (isNarrow && isOpen) $("close-sidebar").focus();
  else if (wasOpen) $("open-sidebar").focus();
}

function showSettings(isOpen) {
  if (isOpen) settings.draw();
  $("settings").hidden = !isOpen;
  document.body.classList.toggle("with-settings", isOpen);
  $("open-settings").setAttribute("aria-expanded", isOpen);
  if (isOpen) $("set-system").focus();
  else $("open-settings").focus();
}

$("open-sidebar").addEventListener("click", () => showSidebar(true));
$("close-sidebar").addEventListener("click", () => showSidebar(false));
$("scrim").addEventListener("click", () => showSidebar(false));
$("open-settings").addEventListener("click", () => showSettings($("settings").hidden));
$("settings").addEventListener("click", (event) => event.target.closest("#close-settings") && showSettings(false));
$("new-chat").addEventListener("click", () => open(null));
matchMedia("(max-width: 860px)").addEventListener("change", () => showSidebar(false));

// --- the server -------------------------------------------------------------------------------------------------------

let isConnecting = false;

/** Asks which models answer, until the server says so. */
async function connect() {
  if (isConnecting) return;
  isConnecting = true;
  for (;;) {
    try {
      state.models = (await api.getJson("/v1/models")).data;
      break;
    } catch (error) {
      const isLoading = error.kind === "loading"; // nothing is wrong: the page says so and waits
      showLoading(isLoading);
      banner(isLoading ? "" : error.message, error.kind === "key" ? { name: "Enter the key", run: () => askKey(connect) } : null);
      if (error.kind === "key") {
        isConnecting = false;
        askKey(connect);
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, isLoading ? LOADING_MS : 3000));
    }
  }
  isConnecting = false;
  showLoading(false);
  banner("");
  showModels();
}

function showLoading(isLoading) {
  if (isLoading !== $("loading").hidden) return;
  $("loading").hidden = !isLoading;
  $("loading").replaceChildren(...(isLoading ? [h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), LOADING] : []));
}

function banner(words, action = null) {
  $("banner").hidden = !words;
  $("banner").replaceChildren(words, action ? h("button", { type: "button", onclick: action.run }, action.name) : "");
}

function showModels() {
  const wanted = new URLSearchParams(location.search).get("model");
  const ids = state.models.map((model) => model.id);
  if (wanted && !ids.includes(wanted)) ids.push(wanted);
  state.model = wanted ?? (ids.includes(state.model) ? state.model : ids[0] ?? "");
  $("model").replaceChildren(...ids.map((id) => h("option", { value: id }, id)));
  $("model").value = state.model;
  $("model").hidden = ids.length < 2;
  $("model-name").textContent = ids.length < 2 ? state.model : "";
  const model = state.models.find((entry) => entry.id === state.model);
  const context = model?.context ? ` It reads ${model.context.toLocaleString("en-US")} tokens at once.` : "";
  $("about").textContent = `You are talking to ${state.model || "a model"}, which runs on the machine that serves this page.${context} What a default run learns:`;
}

$("model").addEventListener("change", () => {
  state.model = $("model").value;
  const place = new URL(location.href);
  place.searchParams.set("model", state.model);
  history.replaceState(null, "", place);
  showModels();
});

// --- the beginning ----------------------------------------------------------------------------------------------------

placeIcons();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the conversation
  $("words").focus();
});
$("examples").replaceChildren(...EXAMPLES.map(({ skill, prompt }) => h("li", {}, h("button", {
  type: "button",
  onclick: () => {
    $("words").value = prompt;
    submit();
    $("words").focus();
  },
}, h("span", { class: "skill" }, skill), h("span", {}, prompt)))));
addEventListener("pagehide", () => state.live && store.keep(state.live.conversation));
store.onElsewhere(() => {
  list();
  const elsewhere = store.keptConversation(state.conversation.id);
  if (!state.live && elsewhere && elsewhere.updated > state.conversation.updated) {
    state.conversation = elsewhere;
    draw();
  }
});
state.conversation = store.keptConversation(location.hash.slice(1)) ?? state.conversation;
showSidebar(false);
draw();
list();
showSend();
connect();
