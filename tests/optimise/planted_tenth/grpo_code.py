"""GRPO on programming puzzles; the reward is the share of hidden cases a solution passes."""
import base64
import contextlib
import io
import pickle
import re
import sys
import zlib
from functools import lru_cache
from typing import Dict, List, Sequence

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

POLICY = "Qwen/Qwen2.5-Coder-1.5B-Instruct"
PUZZLES = "some-lab/puzzles-v2"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)

ASK = (
    "Write a Python program that reads standard input and prints the answer.\n\n"
    "{statement}\n\nPut the program into one ```python block."
)


@lru_cache(maxsize=4096)
def hidden_cases(blob: str) -> List[Dict[str, str]]:
    raw = zlib.decompress(base64.b64decode(blob))
    return pickle.Unpickler(io.BytesIO(raw)).load()


def program(completion) -> str:
    text = completion[0]["content"]
    blocks = CODE.findall(text)
    return blocks[-1] if blocks else ""


@contextlib.contextmanager
def swapped_stdio(given: str):
    before = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = io.StringIO(given), io.StringIO()
    try:
        yield sys.stdout
    finally:
        sys.stdin, sys.stdout = before


def passes(compiled, case: Dict[str, str]) -> bool:
    with swapped_stdio(case["input"]) as out:
        try:
            exec(compiled, {"__name__": "__main__"})
        except BaseException:
            return False
    return out.getvalue().split() == case["output"].split()


def share_passed(source: str, cases: Sequence[Dict[str, str]]) -> float:
    try:
        compiled = compile(source, "<solution>", "exec")
    except (SyntaxError, ValueError):
        return 0.0
    return sum(passes(compiled, c) for c in cases) / len(cases)


def correctness(completions, cases, **kwargs) -> List[float]:
    return [
        share_passed(program(done), hidden_cases(blob)) if program(done) else 0.0
        for done, blob in zip(completions, cases)
    ]


def format_bonus(completions, **kwargs) -> List[float]:
    return [0.1 if len(CODE.findall(done[0]["content"])) == 1 else 0.0 for done in completions]


def as_prompt(row):
    return {
        "prompt": [{"role": "user", "content": ASK.format(statement=row["statement"])}],
        "cases": row["hidden"],
    }


def main() -> None:
    data = load_dataset(PUZZLES, split="train").shuffle(seed=7)
    data = data.map(as_prompt, remove_columns=data.column_names)
    config = GRPOConfig(
        output_dir="runs/grpo-code",
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=1024,
        learning_rate=1e-6,
        beta=0.0,
        bf16=True,
        use_vllm=True,
        vllm_mode="colocate",
        save_steps=100,
        seed=7,
    )
    trainer = GRPOTrainer(
        model=POLICY,
        args=config,
        reward_funcs=[correctness, format_bonus],
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(POLICY, padding_side="left"),
    )
    trainer.train()


if __name__ == "__main__":
    main()
