"""nanochat at 01f5f10, where the published case study began, trained or asked for texts as it is shipped.

`PYTHON nanochat_casestudy.py --nanochat CHECKOUT --depth N ... --steps FILE | --texts FILE`: needs torch and the
checkout. Model, optimizers and GPT.generate are nanochat's; weights are random in its own layout, none of them zero.
--steps: what chat_sft does in a step is done here in the same order (its batches of 4, filled up to their longest
conversation; gradients of the batches' mean losses; AdamW, then Muon), on conversations that FILE holds as ids, so
that both sides learn the same tokens. --texts: greedy texts of a fixed length from FILE's prompts, one by one.

One JSON object a line, as blocks.py of intone says: first {"ready": true, "first_s", "warm_s", "facts"}, then for each
{"do": "block", "steps": N} or {"do": "block", "requests": N} one answer, until {"do": "quit"}. What cannot be done:
{"error", "outcome", "fix"} and exit status 2. OMP_NUM_THREADS is read by torch as ever.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch

DEVICE_BATCH = 4  # chat_sft's device_batch_size
PAD = 0  # chat_sft fills up with a token of its own; nothing is learned there, and any id takes the same time
INITIAL_SHARE = 0.02  # chat_sft's init_lr_frac; what follows is a line down, which takes no time
SCALE = 0.02  # standard deviation of the weights that nanochat begins at zero
WARM_STEPS = 2
FIX = "git clone https://github.com/karpathy/nanochat && git -C nanochat checkout 01f5f10"


class Unusable(Exception):
    """Why this checkout or these files cannot be used."""


def load_gpt(asked):
    """nanochat's model with random weights. Raises Unusable where the checkout is missing or another version."""
    if not (asked.nanochat / "nanochat" / "gpt.py").is_file():
        raise Unusable(f"{asked.nanochat} is no checkout of nanochat: nanochat/gpt.py is missing")
    sys.path.insert(0, str(asked.nanochat))
    try:
        gpt = importlib.import_module("nanochat.gpt")
    except ImportError as error:
        raise Unusable(f"{sys.executable} cannot import nanochat from {asked.nanochat}: {error}") from error
    for name in ("generate", "setup_optimizers"):
        if not hasattr(getattr(gpt, "GPT", None), name):
            raise Unusable(f"nanochat in {asked.nanochat} has no GPT.{name}: it is another version")
    config = gpt.GPTConfig(
        sequence_len=asked.context, vocab_size=asked.vocab_size, n_layer=asked.depth, n_head=asked.heads,
        n_kv_head=asked.kv_heads, n_embd=asked.width,
    )  # fmt: skip
    device = torch.device(asked.device)
    with torch.device("meta"):
        model = gpt.GPT(config)
    model.to_empty(device=device)
    torch.manual_seed(0)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, SCALE)
    return model


class Sft:
    """chat_sft's step, again and again over the steps of a file."""

    def __init__(self, model, device, path):
        self.model, self.device = model, device
        self.all = json.loads(Path(path).read_text())  # per step [[ids, targets], ...]
        self.optimizers = model.setup_optimizers()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= INITIAL_SHARE
        self.done = 0

    def batches(self, conversations):
        """Four at a time, filled up to the longest of those -> (inputs, targets) on the device."""
        for begin in range(0, len(conversations), DEVICE_BATCH):
            group = conversations[begin : begin + DEVICE_BATCH]
            width = max(len(ids) for ids, _ in group)
            # scan: ok[S23] chat_sft fills up its batches, and that is what is measured
            inputs = torch.full((len(group), width), PAD, dtype=torch.long)
            targets = torch.full((len(group), width), -1, dtype=torch.long)
            for row, (ids, wanted) in enumerate(group):
                inputs[row, : len(ids)] = torch.tensor(ids)
                targets[row, : len(ids)] = torch.tensor(wanted)
            yield inputs.to(self.device), targets.to(self.device)

    def step(self):
        """One optimizer step -> (mean of the batches' losses, supervised tokens)."""
        conversations = self.all[self.done % len(self.all)]
        count = -(-len(conversations) // DEVICE_BATCH)
        losses, supervised = [], torch.tensor(0, device=self.device)
        for inputs, targets in self.batches(conversations):
            loss = self.model(inputs, targets)
            losses.append(loss.detach())
            (loss / count).backward()
            supervised += (targets >= 0).sum()
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.done += 1
        # scan: ok[S30] chat_sft reads both for its log line
        return float(sum(losses)) / count, int(supervised)

    def block(self, asked):
        first = self.done
        wait(self.device)
        begin = time.perf_counter()
        # scan: ok[S21] chat_sft compiles nothing, and that is what is measured
        found = [self.step() for _ in range(int(asked["steps"]))]
        wait(self.device)
        return {
            "steps": len(found), "seconds": time.perf_counter() - begin, "supervised": sum(count for _, count in found),
            "losses": [loss for loss, _ in found], "first_step": first,
        }  # fmt: skip

    def warm_up(self):
        return self.block({"steps": 1})["seconds"], self.block({"steps": WARM_STEPS - 1})["seconds"]


class Texts:
    """GPT.generate, one prompt after the other, beginning again behind the last."""

    def __init__(self, model, device, path):
        asked = json.loads(Path(path).read_text())
        self.model, self.device = model.eval(), device
        self.prompts, self.new_tokens = asked["prompts"], asked["new_tokens"]
        self.done = 0

    def text(self, new_tokens):
        prompt = self.prompts[self.done % len(self.prompts)]
        self.done += 1
        return len(prompt), len(list(self.model.generate(list(prompt), new_tokens, temperature=0.0)))

    def block(self, asked):
        first = self.done
        wait(self.device)
        begin = time.perf_counter()
        found = [self.text(self.new_tokens) for _ in range(int(asked["requests"]))]
        wait(self.device)
        return {
            "first_request": first, "requests": len(found), "seconds": time.perf_counter() - begin,
            "tokens": sum(new for _, new in found), "prompt_tokens": sum(old for old, _ in found),
        }  # fmt: skip

    def warm_up(self):
        begin = time.perf_counter()
        self.text(2)
        return time.perf_counter() - begin, 0.0


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse(argv):
    parser = argparse.ArgumentParser(prog="nanochat_casestudy.py", description=__doc__)
    parser.add_argument("--nanochat", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    for name in ("depth", "context", "vocab-size", "width", "heads", "kv-heads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--steps", type=Path, help="JSON: per step its conversations, each [ids, targets]")
    work.add_argument("--texts", type=Path, help='JSON: {"prompts": [[ids]], "new_tokens": N}')
    return parser.parse_args(argv)


def main(argv):
    """Serves questions until quit or the end of stdin -> exit status, 2 where something cannot be done."""
    asked = parse(argv)
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever nanochat prints

    def answer(value):
        print(json.dumps(value), file=channel, flush=True)

    try:
        model = load_gpt(asked)
        device = torch.device(asked.device)
        work = Sft(model, device, asked.steps) if asked.steps else Texts(model, device, asked.texts)
        first_s, warm_s = work.warm_up()
    except (Unusable, OSError, ValueError) as problem:
        answer({"error": str(problem), "outcome": "bad_input", "fix": FIX})
        return 2
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }  # fmt: skip
    answer({"ready": True, "first_s": first_s, "warm_s": warm_s, "facts": facts})
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "quit":
            break
        answer(work.block(question))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
