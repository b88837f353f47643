// The logs of a run's stages, read piece by piece from where the last answer ended.

import * as api from "/ui/api.js";

const COLUMNS = ["step", "tokens", "loss", "tokens_per_s", "peak_bytes"];

export class Curves {
  constructor() {
    this.stages = new Map();
  }

  /** Whether nothing can be new in a stage's log. */
  isComplete(stage) {
    return this.stages.get(stage)?.isOver ?? false;
  }

  of(stage) {
    return this.stages.get(stage) ?? empty();
  }

  /** Reads what a log has behind what is known. isOver: nobody writes it any more. Raises ApiError. */
  async read(path, stage, { isOver }) {
    let known = this.stages.get(stage) ?? empty();
    for (;;) {
      const answer = await api.getJson(`${path}/log?stage=${stage}&file=${known.file}&offset=${known.offset}`);
      if (answer.is_new) known = empty();
      known.file = answer.file;
      known.offset = answer.offset;
      for (const name of COLUMNS) known[name].push(...answer.steps[name]);
      known.evals.push(...answer.evals);
      known.events.push(...answer.events);
      known.skipped += answer.skipped;
      known.damaged += answer.damaged;
      if (!answer.more) break;
    }
    known.isOver = isOver;
    this.stages.set(stage, known);
  }
}

function empty() {
  const columns = Object.fromEntries(COLUMNS.map((name) => [name, []]));
  return { ...columns, file: "", offset: 0, evals: [], events: [], skipped: 0, damaged: 0, isOver: false };
}
