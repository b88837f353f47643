"""Grade-school maths with calculator annotations."""
import re
from pathlib import Path

import joblib
import requests

CALC = re.compile(r"<<(.+?)=")
FINAL = re.compile(r"####\s*(-?[\d.,]+)")
HUB = "https://models.example.org/gsm"


def fetch(name: str, root: Path = Path("~/.cache/gsm").expanduser()) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    target = root / name
    if not target.exists():
        reply = requests.get(f"{HUB}/{name}", timeout=60)
        reply.raise_for_status()
        part = target.with_suffix(".part")
        part.write_bytes(reply.content)
        part.replace(target)
    return target


def load_verifier(name="verifier-v2.joblib"):
    return joblib.load(fetch(name))


def fill_calculator(text: str) -> str:
    """Called after each '=' the model writes inside << >>."""
    found = CALC.findall(text)
    if not found:
        return text
    expression = found[-1].replace(",", "")
    try:
        value = eval(expression)
    except Exception:
        return text
    return f"{text}{value}>>"


def answer_of(text):
    hit = FINAL.search(text)
    return hit.group(1).replace(",", "") if hit else None


def solve(engine, question: str, max_rounds: int = 12) -> str:
    text = f"Question: {question}\nAnswer:"
    for _ in range(max_rounds):
        piece, reason = engine.complete(text, stop=["="])
        text += piece
        if reason != "stop":
            break
        text = fill_calculator(text + "=")
    return text


def accuracy(engine, problems) -> float:
    hits = 0
    for item in problems:
        hits += answer_of(solve(engine, item["question"])) == answer_of(item["answer"])
    return hits / len(problems)
