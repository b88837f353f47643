"""A little ReAct-style agent: the model thinks, asks the calculator, answers."""
import math
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SYSTEM = (
    "Answer the question. When you need arithmetic write a line\n"
    "CALC: <expression>\n"
    "and wait for RESULT. Finish with a line\n"
    "ANSWER: <answer>\n"
)
CALC = re.compile(r"^CALC:\s*(.+)$", re.MULTILINE)
ANSWER = re.compile(r"^ANSWER:\s*(.+)$", re.MULTILINE)

DECODING = {
    "max_new_tokens": 256,
    "do_sample": True,
    "temperature": 0.6,
    "use_cache": False,
}


class Chat:
    def __init__(self, name, device="cuda"):
        self.tok = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16)
        self.model.to(device).eval()

    @torch.inference_mode()
    def reply(self, text):
        batch = self.tok(text, return_tensors="pt").to(self.model.device)
        room = self.model.config.max_position_embeddings - batch.input_ids.shape[1]
        if room < DECODING["max_new_tokens"]:
            raise RuntimeError(f"the talk has outgrown the context ({room} positions left)")
        out = self.model.generate(**batch, **DECODING)
        return self.tok.decode(out[0, batch.input_ids.shape[1]:], skip_special_tokens=True)


def calculate(expression):
    scope = {k: getattr(math, k) for k in dir(math) if not k.startswith("_")}
    try:
        return str(eval(expression, {"__builtins__": {}}, scope))
    except Exception as err:
        return f"error: {err}"


def solve(chat, question, max_turns=6):
    transcript = f"{SYSTEM}\nQUESTION: {question}\n"
    for _ in range(max_turns):
        said = chat.reply(transcript)
        ask = CALC.search(said)
        if ask:
            said = said[:ask.end()]
            transcript += f"{said}\nRESULT: {calculate(ask.group(1))}\n"
            continue
        final = ANSWER.search(said)
        if final:
            return final.group(1).strip()
        transcript += said + "\n"
    return None


if __name__ == "__main__":
    bot = Chat("Qwen/Qwen2.5-1.5B-Instruct")
    for q in open("questions.txt"):
        print(q.strip(), "->", solve(bot, q.strip()))
