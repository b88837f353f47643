// One run on the page: how far it is, its curves, what it says, and what was decided with the reasons.

import { Chart } from "/ui/chart.js";
import { bytes, copy, count, duration, h, icon, threeDigits } from "/ui/dom.js";

const COLOURS = { base: 1, mid: 2, sft: 3, rl: 4 };
const WORDS = { done: "finished", stopped: "stopped", out_of_memory: "out of memory", not_finite: "loss not finite", bad_input: "bad input", disk_full: "disk full", error: "failed", killed: "killed" };

/** How a run stands -> {word, kind: live, good, bad, or still}. */
export function stateOf(run) {
  if (run.is_live) return { word: run.step || !run.stage ? (run.stage ? "training" : "preparing") : "starting", kind: "live" };
  if (run.state === "unfinished") return { word: "cut off", kind: "still" };
  return { word: WORDS[run.state] ?? run.state, kind: run.state === "done" ? "good" : run.state === "stopped" ? "still" : "bad" };
}

export class RunView {
  constructor({ canLoad, talk }) {
    this.canLoad = canLoad;
    this.talk = talk;
    this.head = h("header", { class: "head" });
    this.progress = h("div", { class: "progress" });
    this.tiles = h("dl", { class: "tiles" });
    this.charts = {
      loss: new Chart({ title: "Loss", unit: "nats per token", isFromZero: false, format: (v) => (v >= 10 ? threeDigits(v) : v.toFixed(v < 1 ? 3 : 2)) }),
      rate: new Chart({ title: "Speed", unit: "tokens per second", format: count }),
      memory: new Chart({ title: "Memory", unit: "peak of the worker", format: (v) => (v ? bytes(v * 2 ** 30) : "0"), isSmooth: false }),
      bpb: new Chart({ title: "Validation", unit: "bits per byte", isFromZero: false, format: (v) => v.toFixed(3), isSmooth: false, hasDots: true }),
    };
    this.samples = h("section");
    this.decided = h("section");
    this.happened = h("section");
    this.rest = h("section");
    const charts = h("section", { class: "charts" }, Object.values(this.charts).map((chart) => chart.root));
    this.root = h("div", { class: "run" }, this.head, this.progress, this.tiles, charts, this.samples, this.decided, this.happened, this.rest);
  }

  /** What changes seldom: the plan, samples, outcomes. */
  about(run) {
    this.run = run;
    this.drawHead(run);
    this.drawSamples(run);
    this.drawDecisions(run);
    this.rest.replaceChildren(h("h2", {}, "Model, recipe, machine"), ...run.tables.map(plainTable), h("p", { class: "where" }, run.folder));
    this.rest.hidden = !run.tables.length;
  }

  drawHead(run) {
    const { word, kind } = stateOf(run);
    const newest = run.train.findLast((stage) => stage.newest_save !== null);
    const save = newest ? `${newest.stage}, step ${newest.newest_save.toLocaleString("en-US")}` : "";
    const talk = this.canLoad && newest ? h("button", { type: "button", class: "primary", onclick: (event) => this.talk(run.name, newest.stage, event.currentTarget) }, `Chat with it (${save})`) : null;
    this.head.replaceChildren(
      h("div", { class: "title" }, h("h1", {}, run.name), h("span", { class: `state ${kind}` }, word), talk),
      h("p", { class: "subtitle" }, run.subtitle), ...run.problems.map((problem) => h("p", { class: "problem" }, problem)), ...ending(run));
  }

  /** What changes with every step. */
  now(run, curves) {
    const stages = this.run.train.map((stage) => ({ ...stage, log: curves.of(stage.stage) }));
    this.drawProgress(run, stages);
    this.drawTiles(run, stages);
    this.drawCharts(run, stages);
    this.drawEvents(stages);
  }

  drawProgress(run, stages) {
    const parts = stages.map((stage) => {
      const done = stage.log.step.at(-1) ?? 0;
      const share = stage.steps ? done / stage.steps : 0;
      const words = stage.steps ? `${done.toLocaleString("en-US")} of ${stage.steps.toLocaleString("en-US")} steps` : "not begun";
      const bar = h("div", { class: `bar f${COLOURS[stage.stage]}` });
      bar.style.width = `${100 * share}%`;
      return h("div", { class: "stage" }, h("div", { class: "stage-words" }, h("strong", {}, stage.stage), h("span", {}, words)), h("div", { class: "track", role: "progressbar", "aria-label": stage.stage, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * share), "aria-valuetext": words }, bar));
    });
    this.progress.replaceChildren(...parts);
  }

  drawTiles(run, stages) {
    const stage = stages.findLast((entry) => entry.log.step.length);
    const tiles = [];
    if (stage) {
      const { log } = stage;
      const rate = recent(log.tokens_per_s);
      const loss = recent(log.loss);
      tiles.push(["loss", loss === null ? "not finite" : loss.toFixed(3), run.is_live ? `${stage.stage}, mean of the last steps` : `${stage.stage}, at its end`]);
      tiles.push(["tokens per second", rate === null ? "unknown" : count(rate), `${count(log.tokens.at(-1))} in ${stage.stage}`]);
      tiles.push(["MFU", rate === null || !stage.mfu_per_rate ? "unknown" : `${(100 * rate * stage.mfu_per_rate).toFixed(1)}%`, stage.mfu_per_rate ? "of the rate of large products here" : "no peak number for this device"]);
      tiles.push(["memory", bytes(log.peak_bytes.at(-1)), "peak of the worker"]);
    }
    if (run.is_live && stage && run.left_s !== null) {
      const later = run.stages.slice(run.stages.indexOf(run.stage) + 1);
      tiles.push(["time left", duration(run.left_s), `in ${run.stage}${later.length ? `, then ${later.join(" and ")}` : ""}`]);
    } else if (this.run.minutes.taken) tiles.push(["time", duration(60 * this.run.minutes.taken), this.run.minutes.planned ? `${threeDigits(this.run.minutes.planned)} min planned` : ""]);
    if (this.run.starter !== null) tiles.push(["held-out skills", `${(100 * this.run.starter).toFixed(1)}%`, "right, mean of all"]);
    this.tiles.replaceChildren(...tiles.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("strong", {}, value), h("span", {}, more)))));
  }

  drawCharts(run, stages) {
    const series = (values) => {
      let before = 0;
      const lines = [];
      for (const stage of stages) {
        const { log } = stage;
        const points = values(log).map(([step, value]) => [before + step, value]);
        lines.push({ name: stage.stage, colour: COLOURS[stage.stage], points, before });
        before += log.step.at(-1) ?? 0;
      }
      return lines;
    };
    const column = (name, scale = 1) => series((log) => log.step.map((step, at) => [step, log[name][at] === null ? null : log[name][at] * scale]));
    const current = stages.findIndex((stage) => stage.stage === run.stage);
    const before = stages.slice(0, Math.max(0, current)).reduce((sum, stage) => sum + (stage.log.step.at(-1) ?? 0), 0);
    const total = run.is_live && current >= 0 && stages[current].steps ? before + stages[current].steps : null;
    this.charts.loss.set(column("loss"), total);
    this.charts.rate.set(column("tokens_per_s"), total);
    this.charts.memory.set(column("peak_bytes", 2 ** -30), total);
    const bpb = series((log) => log.evals.filter((row) => "bpb" in row.values).map((row) => [row.step, row.values.bpb]));
    this.charts.bpb.set(bpb.some((line) => line.points.length > 1) ? bpb : [], total);
  }

  drawSamples(run) {
    this.samples.hidden = !run.samples.length;
    this.samples.replaceChildren(h("h2", {}, "What it says"), ...run.samples.map(({ stage, step, said }, at) => h("details", { open: at === 0 }, h("summary", {}, `After ${stage}, step ${step.toLocaleString("en-US")}`),
      h("div", { class: "said" }, said.map(({ prompt, text }) => h("div", {}, h("p", { class: "asked" }, prompt), h("p", { class: "answered" }, text || "(nothing)")))))));
  }

  drawDecisions(run) {
    this.decided.hidden = !run.decided.length && !run.segments.length;
    const rows = run.decided.map((entry) => h("tr", {}, h("th", { scope: "row" }, entry.name), h("td", { class: "value" }, entry.value), h("td", {}, entry.reason,
      ...entry.beat.map((other) => h("span", { class: "beat" }, `instead of ${other.value}: ${other.why}`))), h("td", { class: "origin" }, entry.origin)));
    const steps = run.segments.map((part) => h("tr", {}, h("th", { scope: "row" }, part.stage), h("td", {}, `from step ${part.from_step.toLocaleString("en-US")}`), h("td", {}, part.how, h("span", { class: "beat" }, part.reason))));
    const parts = [h("h2", {}, "What was decided, and why"),
      h("table", { class: "decided" }, h("thead", {}, h("tr", {}, ["setting", "value", "why", "from"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows)),
      run.defaults.length ? h("details", {}, h("summary", {}, `${run.defaults.length} settings at their defaults`), h("p", { class: "plain" }, run.defaults.map((entry) => `${entry.name} ${entry.value}`).join(" · "))) : null,
      steps.length ? h("h3", {}, "How the steps are computed") : null,
      steps.length ? h("table", { class: "decided" }, h("tbody", {}, steps)) : null];
    this.decided.replaceChildren(...parts.filter(Boolean));
  }

  drawEvents(stages) {
    const rows = stages.flatMap(({ stage, log }) => [
      ...log.events.map((event) => [stage, event.step, event.event, event.message]),
      ...(log.skipped ? [[stage, log.step.at(-1), "skipped", `${log.skipped} updates were left out, because the loss was not finite`]] : []),
      ...(log.damaged ? [[stage, null, "damaged", `${log.damaged} lines of the log could not be read`]] : []),
    ]);
    const print = JSON.stringify(rows);
    if (print === this.events) return;
    this.events = print;
    this.happened.hidden = !rows.length;
    this.happened.replaceChildren(h("h2", {}, "What happened"), h("table", { class: "decided" }, h("tbody", {}, rows.map(([stage, step, name, message]) => h("tr", {}, h("th", { scope: "row" }, stage), h("td", {}, step === null ? "" : `step ${step.toLocaleString("en-US")}`), h("td", {}, h("strong", {}, name), " ", message))))));
  }
}

/** How a run that is not at work ended, and what to do. */
function ending(run) {
  if (run.is_live || run.state === "done") return [];
  const boxes = [];
  for (const stage of run.train) {
    const outcome = stage.outcome;
    if (outcome && stage.state !== "done") boxes.push(h("div", { class: "outcome" }, h("p", {}, h("strong", {}, `${stage.stage}: ${WORDS[stage.state] ?? stage.state}. `), outcome.message), outcome.fix ? h("p", {}, `What to do: ${outcome.fix}`) : null));
  }
  if (!boxes.length) boxes.push(h("div", { class: "outcome still" }, h("p", {}, "Nothing works on it now, and it is not finished.")));
  if (run.go_on) {
    const button = h("button", { type: "button", class: "small", "aria-label": "Copy the command", onclick: () => copy(run.go_on, button) }, icon("copy"), "Copy");
    boxes.at(-1).append(h("p", { class: "command" }, "It goes on from its last save with: ", h("code", {}, run.go_on), button));
  }
  return boxes;
}

/** The mean of the last few values; null where there is none. */
function recent(values) {
  const last = values.slice(-10).filter((value) => value !== null);
  return last.length ? last.reduce((sum, value) => sum + value, 0) / last.length : null;
}

function plainTable({ title, header, rows }) {
  const head = header.length ? h("thead", {}, h("tr", {}, header.map((name) => h("th", { scope: "col" }, name)))) : null;
  return h("details", {}, h("summary", {}, title), h("div", { class: "wide" }, h("table", { class: "plain-table" }, head, h("tbody", {}, rows.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map((cell) => h("td", {}, cell))))))));
}
