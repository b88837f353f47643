"""Tiny tool-using agent around a local chat model."""
from __future__ import annotations

import datetime as dt
import json
import math
import pickle
import re
from typing import Callable

import requests
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SYSTEM = """You can call tools by answering with
<tool>{"name": "...", "input": "..."}</tool>
Tools: python (evaluates an expression), today, recall (searches notes)."""


class NoteStore:
    """Notes shared between agents through an HTTP bucket."""

    def __init__(self, base_url):
        self.base_url = base_url.rstrip("/")

    def _decode(self, blob):
        return pickle.loads(blob)

    def fetch(self, user):
        r = requests.get(f"{self.base_url}/{user}/notes.bin", timeout=10)
        r.raise_for_status()
        return self._decode(r.content)

    def search(self, user, query):
        words = query.lower().split()
        notes = self.fetch(user)
        return [n for n in notes if any(w in n.lower() for w in words)][:5]


class ToolBox:
    def __init__(self, notes: NoteStore, user: str):
        self.scope = {k: getattr(math, k) for k in dir(math) if not k.startswith("_")}
        self.notes = notes
        self.user = user
        self.tools: dict[str, Callable[[str], object]] = {
            "python": self._python,
            "today": lambda _: dt.date.today().isoformat(),
            "recall": lambda q: self.notes.search(self.user, q),
        }

    def _python(self, source):
        code = compile(source.strip(), "<tool>", "eval")
        return eval(code, {"__builtins__": {}}, self.scope)

    def dispatch(self, reply):
        m = re.search(r"<tool>(.*?)</tool>", reply, re.S)
        if m is None:
            return None
        call = json.loads(m.group(1))
        try:
            return str(self.tools[call["name"]](call["input"]))
        except Exception as e:
            return f"error: {e}"


class Agent:
    def __init__(self, model_name, toolbox, max_turns=6):
        self.tok = AutoTokenizer.from_pretrained(model_name)
        self.model = AutoModelForCausalLM.from_pretrained(
            model_name, torch_dtype=torch.bfloat16, device_map="auto"
        ).eval()
        self.toolbox = toolbox
        self.max_turns = max_turns

    @torch.inference_mode()
    def reply(self, messages):
        ids = self.tok.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt"
        ).to(self.model.device)
        if ids.size(1) + 400 > self.model.config.max_position_embeddings:
            raise RuntimeError("conversation too long")
        out = self.model.generate(ids, max_new_tokens=400, do_sample=False)
        return self.tok.decode(out[0, ids.size(1):], skip_special_tokens=True)

    def ask(self, question):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        for _ in range(self.max_turns):
            text = self.reply(messages)
            messages.append({"role": "assistant", "content": text})
            result = self.toolbox.dispatch(text)
            if result is None:
                return text
            messages.append({"role": "user", "content": f"Tool result: {result}"})
        return messages[-1]["content"]


if __name__ == "__main__":
    box = ToolBox(NoteStore("http://notes.internal:9000"), user="demo")
    agent = Agent("Qwen/Qwen2.5-1.5B-Instruct", box)
    print(agent.ask("What is 17% of 2481, rounded to cents?"))
