"""Lets a local model work on a repository through a few tools."""
import json
import logging
import subprocess
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

log = logging.getLogger("tool_runner")


class LocalModel:
    def __init__(self, name, window=8192, reply=512):
        self.tok = AutoTokenizer.from_pretrained(name)
        self.lm = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto").cuda().eval()
        self.window = window
        self.reply = reply

    def _encode(self, messages):
        ids = self.tok.apply_chat_template(messages, add_generation_prompt=True,
                                           return_tensors="pt")
        return ids[:, -(self.window - self.reply):].cuda()

    @torch.inference_mode()
    def __call__(self, messages):
        ids = self._encode(messages)
        out = self.lm.generate(ids, attention_mask=torch.ones_like(ids),
                               max_new_tokens=self.reply, do_sample=False)
        return self.tok.decode(out[0, ids.shape[1]:], skip_special_tokens=True)


class Toolbox:
    def __init__(self, root):
        self.root = Path(root).resolve()
        self.table = {"list": self.list, "read": self.read, "check": self.check}

    def _inside(self, rel):
        path = (self.root / rel).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"{rel} lies outside the repository")
        return path

    def list(self, path="."):
        return "\n".join(sorted(p.name for p in self._inside(path).iterdir()))

    def read(self, path):
        return self._inside(path).read_text(errors="replace")

    def check(self, using="pytest -q"):
        done = self._spawn(using)
        return f"exit {done.returncode}\n{done.stdout}{done.stderr}"

    def _spawn(self, line):
        return subprocess.run(line, shell=True, cwd=self.root, timeout=120,
                              capture_output=True, text=True)

    def call(self, request):
        tool = self.table.get(request.get("tool"))
        if tool is None:
            return f"no such tool, have {', '.join(self.table)}"
        try:
            return tool(**request.get("args", {}))
        except Exception as err:
            log.warning("tool failed: %s", err)
            return f"error: {err}"


def work(model, root, task, turns=20):
    tools = Toolbox(root)
    messages = [
        {"role": "system", "content": "Reply with one JSON object: {\"tool\": ..., \"args\": "
                                      "{...}} or {\"answer\": ...}. Tools: list, read, check."},
        {"role": "user", "content": task},
    ]
    for _ in range(turns):
        said = model(messages)
        messages.append({"role": "assistant", "content": said})
        try:
            request = json.loads(said)
        except json.JSONDecodeError:
            messages.append({"role": "user", "content": "That was not JSON."})
            continue
        if "answer" in request:
            return request["answer"]
        messages.append({"role": "user", "content": tools.call(request)})
    return None
