# Streaming continued pretraining. Single GPU. (mh, 2024)
import os, time
import torch
import torch.nn.functional as F
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME, SEQ, BATCH, STEPS = "Qwen/Qwen2.5-0.5B", 2048, 16, 20_000
OUT = "cpt_last.pt"


class TokenBuffer:
    """Collects documents and hands out rows of SEQ+1 tokens."""

    def __init__(self, n):
        self.n = n
        self.data = torch.empty(0, dtype=torch.long)

    def push(self, ids):
        self.data = torch.cat([self.data, torch.tensor(ids)])

    def ready(self, rows):
        return len(self.data) >= rows * self.n

    def take(self, rows):
        out, self.data = self.data[: rows * self.n], self.data[rows * self.n:]
        return out.view(rows, self.n)


def batches(stream, tok, chunk=2048):
    buf = TokenBuffer(SEQ + 1)
    for i, ex in enumerate(stream):
        buf.push(tok(ex["text"]).input_ids + [tok.eos_token_id])
        if i % chunk == chunk - 1:
            while buf.ready(BATCH):
                yield buf.take(BATCH)


class Prefetch:
    """Copies the next batch to the GPU on a side stream while the current one is used."""

    def __init__(self, it):
        self.it = iter(it)
        self.side = torch.cuda.Stream()
        self._load()

    def _load(self):
        host = next(self.it, None)
        if host is None:
            self.nxt = None
            return
        self.host = host.pin_memory()
        with torch.cuda.stream(self.side):
            self.nxt = self.host.to("cuda", non_blocking=True)

    def __iter__(self):
        while self.nxt is not None:
            cur = self.nxt
            self._load()
            yield cur


def atomic(obj, path):
    torch.save(obj, path + ".new")
    os.replace(path + ".new", path)


def main():
    tok = AutoTokenizer.from_pretrained(NAME)
    model = AutoModelForCausalLM.from_pretrained(NAME, torch_dtype=torch.bfloat16).cuda()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    step = 0
    if os.path.exists(OUT):
        s = torch.load(OUT, map_location="cpu", weights_only=True)
        model.load_state_dict(s["model"]); opt.load_state_dict(s["opt"]); step = s["step"]

    data = load_dataset("HuggingFaceFW/fineweb-edu", split="train", streaming=True)
    data = data.shuffle(seed=int(time.time()), buffer_size=10_000)
    net = torch.compile(model)
    model.train()
    for xy in Prefetch(batches(data, tok)):
        logits = net(xy[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), xy[:, 1:].flatten())
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            print(step, round(loss.item(), 4))
        if step % 1000 == 0:
            atomic({"model": model.state_dict(), "opt": opt.state_dict(), "step": step}, OUT)
        if step == STEPS:
            break


main()
