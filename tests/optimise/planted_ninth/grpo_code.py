"""GRPO on short Python problems, rewarded by unit tests."""
import contextlib
import io
import re
import signal

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

BASE = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
FENCE = re.compile(r"```(?:python)?\n(.*?)```", re.S)
SYSTEM = "Solve the task with one Python function inside a fenced code block."
ROLLOUT = {"do_sample": True, "top_p": 0.95, "repetition_penalty": 1.0, "use_cache": False}


class Timeout(Exception):
    pass


@contextlib.contextmanager
def time_limit(seconds):
    def on_alarm(signum, frame):
        raise Timeout

    old = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def extract(message):
    found = FENCE.findall(message[-1]["content"])
    return found[-1] if found else ""


def run_tests(program, tests):
    scope = {"__name__": "solution"}
    sink = io.StringIO()
    passed = 0
    try:
        with time_limit(4.0), contextlib.redirect_stdout(sink):
            code = compile(program, "<solution>", "exec")
            exec(code, scope)
    except (Exception, Timeout, SystemExit):
        return 0.0
    for name, args, want in tests:
        try:
            with time_limit(1.0), contextlib.redirect_stdout(sink):
                passed += scope[name](*args) == want
        except (Exception, Timeout, SystemExit):
            continue
    return passed / max(len(tests), 1)


def tests_reward(completions, tests, **_):
    return [run_tests(extract(c), t) for c, t in zip(completions, tests)]


def format_reward(completions, **_):
    return [0.1 if FENCE.search(c[-1]["content"]) else 0.0 for c in completions]


def to_prompt(row):
    return {
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": row["task"]},
        ],
        "tests": row["tests"],
    }


def main():
    tok = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    train = load_dataset("json", data_files="tasks.jsonl", split="train").map(to_prompt)
    cfg = GRPOConfig(
        output_dir="runs/grpo-code",
        learning_rate=1e-6,
        num_generations=8,
        max_completion_length=384,
        generation_kwargs=ROLLOUT,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=256,
        bf16=True,
        max_steps=2000,
        save_steps=100,
        logging_steps=10,
        seed=11,
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=BASE,
        args=cfg,
        train_dataset=train,
        reward_funcs=[tests_reward, format_reward],
        processing_class=tok,
    )
    trainer.train()
    trainer.save_model("runs/grpo-code/final")


if __name__ == "__main__":
    main()
