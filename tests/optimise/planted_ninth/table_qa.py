"""Question answering over numeric tables by letting the LM write a formula."""
import csv
import math
import re
from typing import Dict, Iterable, List

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = (
    "Columns: {columns}\n"
    "Question: {question}\n"
    "Write one formula over the columns, after 'Formula:'.\n"
)
FORMULA = re.compile(r"Formula:\s*(.+)")


def load_table(path: str) -> Dict[str, List[float]]:
    with open(path, newline="") as fh:
        reader = csv.DictReader(fh)
        table: Dict[str, List[float]] = {c: [] for c in reader.fieldnames or []}
        for row in reader:
            for name, cell in row.items():
                table[name].append(float(cell) if cell else math.nan)
    return table


class FormulaQA:
    FUNCS = {"sum": sum, "max": max, "min": min, "len": len, "sqrt": math.sqrt}

    def __init__(self, name: str, device: str = "cuda"):
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(
            name, torch_dtype=torch.bfloat16
        ).to(device)
        self.model.eval()

    def ask(self, question: str, table: Dict[str, List[float]]):
        text = PROMPT.format(columns=", ".join(table), question=question)
        enc = self.tokenizer(text, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            out = self.model.generate(**enc, max_new_tokens=96, do_sample=False)
        reply = self.tokenizer.decode(out[0, enc["input_ids"].size(1):], skip_special_tokens=True)
        return self._compute(reply, table)

    def _compute(self, reply: str, table: Dict[str, List[float]]):
        match = FORMULA.search(reply)
        if match is None:
            return None
        names = {**self.FUNCS, **table, "__builtins__": {}}
        try:
            return eval(match.group(1).strip(), names)
        except (SyntaxError, NameError, TypeError, ZeroDivisionError):
            return None


def held_out_perplexity(model: nn.Module, blocks: Iterable[torch.Tensor], device) -> float:
    """blocks: packed token tensors of equal shape [batch, ctx]."""
    was_training = model.training
    model.eval()
    nll = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    for ids in blocks:
        ids = ids.to(device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        n = ids.size(0) * (ids.size(1) - 1)
        nll += loss.detach().double() * n
        count += n
    model.train(was_training)
    return math.exp(nll.item() / max(count, 1))


def batch_answers(qa: FormulaQA, table_path: str, questions: Iterable[str]):
    table = load_table(table_path)
    answers = []
    for q in questions:
        value = qa.ask(q.strip(), table)
        answers.append({"question": q.strip(), "value": value})
    solved = sum(a["value"] is not None for a in answers)
    print(f"{solved}/{len(answers)} answered")
    return answers
