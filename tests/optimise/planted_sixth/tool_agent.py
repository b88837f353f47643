import re
import textwrap

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SYSTEM = textwrap.dedent("""\
    You can use tools. To call one write
    <tool>name(arguments)</tool>
    and wait for the result.""")

TOOL_RE = re.compile(r"<tool>(.*?)</tool>", re.S)


def search_notes(query, k=3):
    with open("notes.txt") as f:
        hits = [line.strip() for line in f if query.lower() in line.lower()]
    return hits[:k]


def calculator(x):
    return x


class ToolBox:
    def __init__(self):
        self.env = {"search": search_notes, "calc": calculator}

    def register(self, fn):
        self.env[fn.__name__] = fn
        return fn

    def run(self, call):
        try:
            return str(eval(call, self.env))
        except Exception as e:
            return f"error: {e}"


class Agent:
    def __init__(self, name, device=None, max_turns=6):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tok = AutoTokenizer.from_pretrained(name)
        self.dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self.model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=self.dtype)
        self.model.to(self.device).eval()
        self.tools = ToolBox()
        self.max_turns = max_turns

    @torch.no_grad()
    def say(self, messages):
        ids = self.tok.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        ids = ids.to(self.device)
        if ids.shape[1] + 300 > self.model.config.max_position_embeddings:
            raise RuntimeError("conversation is longer than the context")
        out = self.model.generate(ids, max_new_tokens=300, temperature=0.7, do_sample=True)
        return self.tok.decode(out[0, ids.shape[1]:], skip_special_tokens=True)

    def ask(self, question):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        for _ in range(self.max_turns):
            reply = self.say(messages)
            messages.append({"role": "assistant", "content": reply})
            m = TOOL_RE.search(reply)
            if m is None:
                return reply
            result = self.tools.run(m.group(1).strip())
            messages.append({"role": "user", "content": f"<result>{result}</result>"})
        return messages[-1]["content"]


if __name__ == "__main__":
    agent = Agent("Qwen/Qwen2.5-0.5B-Instruct")
    while True:
        try:
            print(agent.ask(input("> ")))
        except EOFError:
            break
