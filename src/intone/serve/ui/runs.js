// The page of runs: follows training in another process by asking for what is new, and for nothing else.

import * as api from "/ui/api.js";
import { ago, h, note, placeIcons } from "/ui/dom.js";
import { askKey } from "/ui/key.js";
import { Curves } from "/ui/curves.js";
import { RunView, stateOf } from "/ui/run_view.js";

const $ = (id) => document.getElementById(id);
const LIVE_MS = 1500;
const QUIET_MS = 6000;

const state = { runs: [], chosen: null, view: null, curves: null, version: null, canLoad: false, timer: 0 };

async function look() {
  clearTimeout(state.timer);
  try {
    const answer = await api.getJson("/api/runs");
    state.runs = answer.runs;
    state.canLoad = answer.can_load;
    banner(answer.not_readable.length ? `Not readable: ${answer.not_readable.join("; ")}` : "");
    choose();
    list(answer.folder);
    await follow();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    banner(error.message);
    if (error.kind === "key") {
      askKey(look);
      return;
    }
  } finally {
    clearTimeout(state.timer);
    const isLive = state.runs.some((run) => run.is_live);
    // a hidden page asks for nothing until it is looked at again
    if (!document.hidden && !$("key-dialog").open) state.timer = setTimeout(look, isLive ? LIVE_MS : QUIET_MS);
  }
}

function choose() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const run = state.runs.find((entry) => entry.name === wanted) ?? state.runs.find((entry) => entry.is_live) ?? state.runs[0];
  if (run?.name === state.chosen) return;
  Object.assign(state, { chosen: run?.name ?? null, view: null, version: null, curves: null });
}

/** Brings the chosen run up to date: the view where a file changed, the curves by what was appended. */
async function follow() {
  const run = state.runs.find((entry) => entry.name === state.chosen);
  if (!run) {
    $("run").replaceChildren(h("div", { class: "nothing" }, h("h1", {}, "No runs yet"), h("p", {}, "A run is made by one command, which sizes the model to this machine:"), h("pre", {}, h("code", {}, "intone run"))));
    document.title = "Runs – intone";
    return;
  }
  const path = `/api/runs/${encodeURIComponent(run.name)}`;
  if (run.version !== state.version) {
    const about = await api.getJson(path);
    if (state.chosen !== run.name) return;
    if (!state.view) {
      state.view = new RunView({ canLoad: state.canLoad, talk });
      state.curves = new Curves();
      $("run").replaceChildren(state.view.root);
    }
    state.view.about(about);
    state.version = run.version;
  }
  const { view, curves } = state;
  for (const stage of run.stages) {
    if (stage === run.stage || !curves.isComplete(stage)) await curves.read(path, stage, { isOver: run.stages.indexOf(stage) < run.stages.indexOf(run.stage) || !run.is_live });
    if (state.view !== view) return;
  }
  view.now(run, curves);
  document.title = `${run.is_live && run.steps ? `${Math.floor((100 * run.step) / run.steps)}% ` : ""}${run.name} – intone`;
}

function list(folder) {
  const focused = $("list").contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  $("list").replaceChildren(...state.runs.map((run) => {
    const { word, kind } = stateOf(run);
    const step = run.is_live && run.steps ? `${run.stage}, ${Math.floor((100 * run.step) / run.steps)}%` : run.starter === null ? ago(Date.parse(run.created)) : `${(100 * run.starter).toFixed(1)}% of skills · ${ago(Date.parse(run.created))}`;
    return h("li", {}, h("a", { href: `#${encodeURIComponent(run.name)}`, "aria-current": run.name === state.chosen ? "true" : null }, h("span", { class: "run-name" }, run.name), h("span", { class: `state ${kind}` }, word), h("span", { class: "when" }, step)));
  }));
  if (!state.runs.length) $("list").append(h("li", { class: "none" }, `None under ${folder}.`));
  if (focused) $("list").querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
}

/** Loads the newest save of a run on the server, then opens the chat with it. */
async function talk(name, stage, button) {
  button.disabled = true;
  const words = button.textContent;
  button.textContent = "Loading its newest save ...";
  try {
    const { model } = await api.loadRun(name, stage);
    location.href = `/?model=${encodeURIComponent(model)}`;
  } catch (error) {
    note(error.message);
    button.disabled = false;
    button.textContent = words;
    if (error.kind === "key") askKey(() => talk(name, stage, button));
  }
}

function banner(words) {
  $("banner").hidden = !words;
  $("banner").textContent = words;
}

addEventListener("hashchange", look);
document.addEventListener("visibilitychange", () => !document.hidden && look());
placeIcons();
look();
