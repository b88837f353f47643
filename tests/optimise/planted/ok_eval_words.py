"""The word eval in harmless places."""
import argparse
import re
from dataclasses import dataclass


@dataclass
class Score:
    task: str
    value: float


class Suite:
    def __init__(self, tasks):
        self.tasks = tasks

    def eval(self, model):
        model.eval()
        return [Score(name, task.eval(model)) for name, task in self.tasks.items()]


def retrieval(pattern, text):
    matcher = re.compile(pattern)
    return [m.group(0) for m in matcher.finditer(text)]


def last_number(completion):
    found = re.findall(r"-?\d+(?:\.\d+)?", completion.replace(",", ""))
    return float(found[-1]) if found else None


def exact(completion, gold):
    got = last_number(completion)
    return got is not None and abs(got - gold) < 1e-6


def exec_time(start, end):
    return end - start


def main():
    cli = argparse.ArgumentParser()
    cli.add_argument("--eval", action="store_true")
    cli.add_argument("--eval-every", type=int, default=250)
    args = cli.parse_args()
    if args.eval:
        print("evaluation only", args.eval_every)


if __name__ == "__main__":
    main()
