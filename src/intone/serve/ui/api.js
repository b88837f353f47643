// Talks to the server this page came from: requests with the key, streams of an answer, and errors in words.

const KEY = "intone.key";

/** What went wrong, in words for people. kind: offline, loading, key, busy, context, model (unknown), refused,
 *  failed. */
export class ApiError extends Error {
  constructor(kind, message, { retryAfter_s = null } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfter_s = retryAfter_s;
  }
}

export function keptKey() {
  return read(sessionStorage) ?? read(localStorage);
}

/** Uses a key from now on; keep: also in the next session of this browser. null forgets it. */
export function useKey(key, { keep = false } = {}) {
  for (const store of [sessionStorage, localStorage]) {
    try {
      store.removeItem(KEY);
    } catch {
      // a browser without storage keeps nothing anyway
    }
  }
  memory = key;
  if (key === null) return;
  try {
    (keep ? localStorage : sessionStorage).setItem(KEY, key);
  } catch {
    // it lives as long as the page
  }
}

let memory = null;

function read(store) {
  try {
    return store.getItem(KEY) ?? memory;
  } catch {
    return memory;
  }
}

async function send(path, { method = "GET", body = null, signal = null } = {}) {
  const headers = {};
  const key = keptKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("offline", "The server does not answer. Is intone serve still running?");
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not JSON: something between us and the server answered
  }
  const words = error.message || `The server answered with status ${response.status}.`;
  const wait_s = Number(response.headers.get("Retry-After")) || null;
  if (response.status === 401) return new ApiError("key", keptKey() ? "The server does not accept this key." : "The server asks for a key.");
  if (response.status === 429) return new ApiError("busy", words, { retryAfter_s: wait_s ?? 2 });
  if (error.code === "loading") return new ApiError("loading", words);
  if (response.status === 503) return new ApiError("offline", words, { retryAfter_s: wait_s });
  if (error.code === "model_not_found") return new ApiError("model", words);
  if (error.code === "context_length_exceeded") return new ApiError("context", words);
  return new ApiError(response.status >= 500 ? "failed" : "refused", words);
}

/** The JSON behind a path. */
export async function getJson(path, options = {}) {
  return (await send(path, options)).json();
}

/** Makes the newest save of a run's stage answer -> {model, step}. */
export function loadRun(name, stage, signal = null) {
  return getJson(`/api/runs/${encodeURIComponent(name)}/load?stage=${encodeURIComponent(stage)}`, { method: "POST", signal });
}

/** Streams an answer: onEvent({text}), ({call: {id, name, input}}), ({output: {id, text}}), then ({finish}), ({usage}).
 *  Raises ApiError; AbortError where signal stopped it. */
export async function streamAnswer(body, { signal, onEvent }) {
  const response = await send("/v1/chat/completions", {
    method: "POST",
    signal,
    body: { ...body, stream: true, stream_options: { include_usage: true } },
  });
  let isWhole = false;
  const calls = new Calls();
  try {
    for await (const data of dataLines(response.body)) {
      if (data === "[DONE]") {
        isWhole = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.code === "context_length_exceeded" ? "context" : "failed", chunk.error.message ?? "The model failed.");
      for (const event of eventsOf(chunk, calls)) onEvent(event);
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("offline", "The connection to the server broke, so this answer may be incomplete.");
  }
  if (!isWhole) throw new ApiError("offline", "The connection to the server broke, so this answer may be incomplete.");
}

/** The payloads of `data:` lines of a stream of server-sent events. */
async function* dataLines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Tool calls put together from their pieces: other servers send the arguments bit by bit. */
class Calls {
  constructor() {
    this.open = new Map();
  }

  add(piece) {
    const call = this.open.get(piece.index) ?? { id: "", name: "", arguments: "" };
    if (piece.id && call.id && piece.id !== call.id) Object.assign(call, { id: "", name: "", arguments: "" });
    call.id ||= piece.id ?? "";
    call.name ||= piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
    this.open.set(piece.index, call);
    return { id: call.id || `call_${piece.index}`, name: call.name || "tool", input: inputOf(call.arguments), arguments: call.arguments };
  }
}

function inputOf(text) {
  try {
    const value = JSON.parse(text);
    return typeof value?.input === "string" ? value.input : text;
  } catch {
    return text;
  }
}

function* eventsOf(chunk, calls) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  if (delta.content) yield { text: delta.content };
  for (const piece of delta.tool_calls ?? []) yield { call: calls.add(piece) };
  for (const message of delta.tool_messages ?? []) yield { output: { id: message.tool_call_id, text: message.content ?? null } };
  if (choice?.finish_reason) yield { finish: choice.finish_reason };
  if (chunk.usage) yield { usage: chunk.usage };
}
