// The question for the server's key, the same on both pages.

import * as api from "/ui/api.js";

const $ = (id) => document.getElementById(id);
let then = null;

/** Asks for the key, then calls done(); not at all where the person says "not now". */
export function askKey(done) {
  then = done;
  $("key").value = "";
  $("key-dialog").returnValue = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey($("key").value.trim(), { keep: $("keep-key").checked });
  $("key").value = "";
  $("key-dialog").close();
  then?.();
});
$("cancel-key").addEventListener("click", () => $("key-dialog").close());
