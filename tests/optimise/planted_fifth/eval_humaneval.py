import argparse
import gzip
import json
import signal
from contextlib import contextmanager

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]


class Timeout(Exception):
    pass


@contextmanager
def time_limit(seconds):
    def handler(signum, frame):
        raise Timeout()

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def load_model(repo, filename, base, device):
    path = hf_hub_download(repo, filename)
    ckpt = torch.load(path, map_location="cpu", weights_only=False)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    model.load_state_dict(ckpt["model"] if "model" in ckpt else ckpt)
    return model.to(device, torch.bfloat16).eval()


def read_problems(path):
    with gzip.open(path, "rt") as f:
        return [json.loads(line) for line in f if line.strip()]


def truncate(text):
    cut = [text.find(s) for s in STOP if s in text]
    return text[: min(cut)] if cut else text


@torch.inference_mode()
def complete(model, tok, prompt, n, temperature):
    enc = tok(prompt, return_tensors="pt").to(model.device)
    out = model.generate(
        **enc,
        do_sample=True,
        temperature=temperature,
        top_p=0.95,
        num_return_sequences=n,
        max_new_tokens=384,
        pad_token_id=tok.eos_token_id,
    )
    texts = tok.batch_decode(out[:, enc.input_ids.shape[1]:], skip_special_tokens=True)
    return [truncate(t) for t in texts]


def passes(problem, completion):
    program = problem["prompt"] + completion + "\n" + problem["test"] + f"\ncheck({problem['entry_point']})"
    env = {}
    try:
        with time_limit(5.0):
            exec(program, env)
        return True
    except Exception:
        return False


def pass_at_k(n, c, k):
    if n - c < k:
        return 1.0
    p = 1.0
    for i in range(n - c + 1, n + 1):
        p *= 1 - k / i
    return 1 - p


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--repo", required=True)
    ap.add_argument("--file", default="pytorch_model.bin")
    ap.add_argument("--base", default="bigcode/tiny_starcoder_py")
    ap.add_argument("--problems", default="HumanEval.jsonl.gz")
    ap.add_argument("-n", type=int, default=20)
    ap.add_argument("--temperature", type=float, default=0.2)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()

    torch.manual_seed(args.seed)
    tok = AutoTokenizer.from_pretrained(args.base)
    model = load_model(args.repo, args.file, args.base, "cuda")

    scores = {1: [], 10: []}
    for prob in read_problems(args.problems):
        outs = complete(model, tok, prob["prompt"], args.n, args.temperature)
        c = sum(passes(prob, o) for o in outs)
        for k in scores:
            scores[k].append(pass_at_k(args.n, c, k))
        print(prob["task_id"], f"{c}/{args.n}")
    for k, v in scores.items():
        print(f"pass@{k}: {sum(v) / len(v):.3f}")


if __name__ == "__main__":
    main()
