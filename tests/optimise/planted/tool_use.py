"""Let a chat model use a calculator and a Python tool."""
import re

import torch

CALL = re.compile(r"<calc>(.*?)</calc>")
BLOCK = re.compile(r"```python\n(.*?)```", re.S)


class Agent:
    def __init__(self, lm, tokenizer):
        self.lm = lm
        self.tokenizer = tokenizer
        self.log = []

    @torch.inference_mode()
    def reply(self, text):
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        out = self.lm.generate(ids, max_new_tokens=256)
        return self.tokenizer.decode(out[0, ids.size(1):])

    def calculate(self, text):
        found = CALL.search(text)
        if not found:
            return None
        formula = found.group(1).replace(",", "")
        try:
            return eval(formula, {"__builtins__": {}})
        except Exception:
            return None

    def turn(self, text):
        answer = self.reply(text)
        value = self.calculate(answer)
        self.log.append((text, answer, value))
        return answer if value is None else f"{answer} = {value}"


def passes(completion, tests):
    """Reward for code: 1 if the tests hold."""
    blocks = BLOCK.findall(completion)
    program = "\n\n".join([*blocks, tests])
    scope = {}
    try:
        exec(compile(program, "<completion>", "exec"), scope)
    except Exception:
        return 0.0
    return 1.0


def reward_batch(completions, tests):
    return torch.tensor([passes(c, t) for c, t in zip(completions, tests)])
