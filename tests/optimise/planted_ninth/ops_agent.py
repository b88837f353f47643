"""A terminal helper: describe what you want, the model works towards it."""
import json
import os
import subprocess
import sys
import textwrap

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = os.environ.get("OPS_MODEL", "Qwen/Qwen2.5-7B-Instruct")
MAX_TURNS = 8
MAX_OUTPUT = 4000

SYSTEM = textwrap.dedent(
    """\
    You help an engineer on a Linux host. Reply with one JSON object:
      {"thought": "...", "bash": "..."}      to look at or change something
      {"thought": "...", "answer": "..."}    when you are finished
    """
)


class Brain:
    def __init__(self, name):
        self.tok = AutoTokenizer.from_pretrained(name)
        self.lm = AutoModelForCausalLM.from_pretrained(
            name, torch_dtype="auto", device_map="auto"
        )
        self.lm.eval()

    @torch.inference_mode()
    def reply(self, history):
        ids = self.tok.apply_chat_template(
            history, add_generation_prompt=True, return_tensors="pt"
        ).to(self.lm.device)
        out = self.lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=400,
            do_sample=False,
            pad_token_id=self.tok.eos_token_id,
        )
        return self.tok.decode(out[0, ids.size(1):], skip_special_tokens=True)


def parse(text):
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return {}
    try:
        obj = json.loads(text[start:end + 1])
    except json.JSONDecodeError:
        return {}
    return obj if isinstance(obj, dict) else {}


def observe(action):
    done = subprocess.run(
        ["bash", "-lc", action], capture_output=True, text=True, timeout=60
    )
    text = done.stdout + done.stderr
    if len(text) > MAX_OUTPUT:
        text = text[:MAX_OUTPUT] + "\n[cut]"
    return f"exit status {done.returncode}\n{text}"


def solve(brain, goal):
    history = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": goal}]
    for _ in range(MAX_TURNS):
        raw = brain.reply(history)
        history.append({"role": "assistant", "content": raw})
        move = parse(raw)
        if "answer" in move:
            return move["answer"]
        if "bash" in move:
            try:
                seen = observe(str(move["bash"]))
            except subprocess.TimeoutExpired:
                seen = "timed out"
        else:
            seen = "Reply with a single JSON object."
        history.append({"role": "user", "content": seen})
    return "no answer within the turn limit"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: ops_agent.py GOAL")
    print(solve(Brain(MODEL), " ".join(sys.argv[1:])))
