"""Rules that ask what a whole program does not do: S94 to S98."""

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S94 ---
fault("S94", """
    import json, torch
    from pathlib import Path
    from torch.utils.data import DataLoader
    from corpus import TokenShards
    from net import build

    def main(cfg):
        model = build(cfg).cuda()
        opt = torch.optim.AdamW(model.parameters(), lr=cfg.lr)
        seen = 0
        last = Path(cfg.out) / "last.pt"
        if last.exists():
            blob = torch.load(last, map_location="cpu", weights_only=True)
            model.load_state_dict(blob["net"])
            opt.load_state_dict(blob["opt"])
            seen = blob["seen"]
        feed = DataLoader(TokenShards(cfg.data), batch_size=cfg.rows, num_workers=2)
        for x, y in feed:
            loss = model(x.cuda(), y.cuda())
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            seen += x.numel()
            if seen >= cfg.budget:
                break
""")  # fmt: skip
fault("S94", """
    import torch, glob, os
    import webdataset as wds

    class Job:
        def __init__(self, args):
            self.args = args
            self.model = make_model(args)
            self.optim = torch.optim.Adam(self.model.parameters())
            self.sched = torch.optim.lr_scheduler.CosineAnnealingLR(self.optim, args.steps)
            self.it = 0

        def restore(self, path):
            s = torch.load(path, weights_only=True)
            self.model.load_state_dict(s["m"])
            self.optim.load_state_dict(s["o"])
            self.sched.load_state_dict(s["s"])
            self.it = s["it"]

        def fit(self):
            pipe = wds.WebDataset(self.args.urls).decode("torchrgb").to_tuple("png", "cls").batched(64)
            stream = iter(pipe)
            while self.it < self.args.steps:
                img, lab = next(stream)
                loss = torch.nn.functional.cross_entropy(self.model(img), lab)
                loss.backward()
                self.optim.step(); self.optim.zero_grad()
                self.sched.step()
                self.it += 1

    def main(args):
        job = Job(args)
        if args.resume:
            job.restore(args.resume)
        job.fit()
""")  # fmt: skip
fault("S94", """
    import torch, os
    from megatron_like import get_args, build_model, TokenReader

    def train():
        args = get_args()
        model, opt, sched = build_model(args)
        it = 0
        if os.path.isdir(args.load):
            pack = torch.load(os.path.join(args.load, "latest.pt"), map_location="cpu", weights_only=True)
            model.load_state_dict(pack["model"])
            opt.load_state_dict(pack["optimizer"])
            sched.load_state_dict(pack["scheduler"])
            it = pack["iteration"]
        reader = TokenReader(args.bin, args.seq, args.micro)
        while it < args.iters:
            toks = reader.next_batch().cuda()
            loss = model(toks[:, :-1], toks[:, 1:])
            loss.backward()
            opt.step(); sched.step(); opt.zero_grad()
            it += 1
""")  # fmt: skip
right("S94", """
    import torch
    from torch.utils.data import DataLoader
    def main(cfg):
        model = build(cfg); opt = torch.optim.AdamW(model.parameters())
        seen = 0
        if cfg.resume:
            blob = torch.load(cfg.resume, weights_only=True)
            model.load_state_dict(blob["net"]); opt.load_state_dict(blob["opt"]); seen = blob["seen"]
        ds = TokenShards(cfg.data, first_token=seen)
        for x, y in DataLoader(ds, batch_size=8):
            loss = model(x, y); loss.backward(); opt.step(); opt.zero_grad()
            seen += x.numel()
""")  # fmt: skip
right("S94", """
    import torch
    from torch.utils.data import DataLoader
    def main(cfg, ds):
        model = build(cfg); opt = torch.optim.AdamW(model.parameters())
        first = 0
        if cfg.resume:
            blob = torch.load(cfg.resume, weights_only=True)
            model.load_state_dict(blob["net"]); opt.load_state_dict(blob["opt"]); first = blob["epoch"] + 1
        for epoch in range(first, cfg.epochs):
            for x, y in DataLoader(ds, batch_size=8):
                loss = model(x, y); loss.backward(); opt.step(); opt.zero_grad()
            torch.save({"net": model.state_dict(), "opt": opt.state_dict(), "epoch": epoch}, cfg.out + ".tmp")
            os.replace(cfg.out + ".tmp", cfg.out)
""")  # fmt: skip
right("S94", """
    import torch
    class Job:
        def load(self, path):
            s = torch.load(path, weights_only=True)
            self.model.load_state_dict(s["m"]); self.optim.load_state_dict(s["o"]); self.it = s["it"]
        def fit(self):
            while self.it < self.args.steps:
                x, y = self.corpus.batch_at(self.it)
                loss = self.model(x, y)
                loss.backward(); self.optim.step(); self.optim.zero_grad()
                self.it += 1
""")  # fmt: skip
right("S94", """
    import torch
    def finetune(model, rows, base):
        s = torch.load(base, weights_only=True)
        model.load_state_dict(s["model"])
        opt = torch.optim.AdamW(model.parameters())
        for x, y in rows:
            loss = model(x, y); loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
# --- S95 ---
fault("S95", """
    import os
    import numpy as np
    import pandas as pd

    def speakers(manifest):
        frame = pd.read_csv(manifest)
        names = set(frame["speaker"])
        return {n: i for i, n in enumerate(names)}

    def split(manifest, held=0.1):
        table = speakers(manifest)
        cut = int(len(table) * (1 - held))
        frame = pd.read_csv(manifest)
        ids = frame["speaker"].map(table)
        return frame[ids < cut], frame[ids >= cut]
""")  # fmt: skip
fault("S95", """
    from concurrent.futures import ThreadPoolExecutor, as_completed
    import numpy as np

    def tokenise_all(paths, tok, dst):
        out = np.memmap(dst, dtype=np.uint16, mode="w+", shape=(10**9,))
        at = 0
        with ThreadPoolExecutor(16) as pool:
            jobs = {pool.submit(tok.encode_file, p): p for p in paths}
            for job in as_completed(jobs):
                ids = job.result()
                out[at:at + len(ids)] = ids
                at += len(ids)
        out.flush()
""")  # fmt: skip
right("S95", """
    import json
    from datasets import Dataset
    def load(path):
        texts = {canonical(json.loads(l)) for l in open(path)}
        return Dataset.from_dict({"text": sorted(texts)})
""")  # fmt: skip
right("S95", """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    def tokenise(paths, encode):
        done = {}
        with ProcessPoolExecutor() as pool:
            jobs = {pool.submit(encode, p): i for i, p in enumerate(paths)}
            for job in as_completed(jobs):
                done[jobs[job]] = job.result()
        return [done[i] for i in range(len(paths))]
""")  # fmt: skip
right("S95", """
    import torch
    from pathlib import Path
    def newest(folder):
        found = [p for p in Path(folder).glob("step_*.pt")]
        return max(found, key=lambda p: int(p.stem.split("_")[1]))
    def clean(folder, dataset):
        for p in Path(folder).iterdir():
            p.unlink()
""")  # fmt: skip
# --- S96 ---
fault("S96", """
    import os, torch
    from torch.nn.parallel import DistributedDataParallel as DDP
    class Masker:
        def __init__(self, ratio, device):
            self.ratio = ratio
            self.g = torch.Generator(device)
            self.g.manual_seed(17)
        def __call__(self, tokens):
            keep = torch.rand(tokens.shape, generator=self.g, device=tokens.device) > self.ratio
            return tokens * keep, keep
    def main():
        torch.distributed.init_process_group("nccl")
        dev = int(os.environ["LOCAL_RANK"])
        net = DDP(build().to(dev))
        mask = Masker(0.6, dev)
        opt = torch.optim.AdamW(net.parameters())
        for tokens in shard(dev):
            seen, keep = mask(tokens.to(dev))
            loss = net(seen, keep)
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("S96", """
    import torch
    from accelerate import Accelerator
    class Corruptor:
        def __init__(self, seed):
            self.gen = torch.Generator().manual_seed(seed)
        def __call__(self, ids):
            drop = torch.rand(ids.shape, generator=self.gen) < 0.15
            return ids.masked_fill(drop, 4)
    def main(cfg):
        acc = Accelerator()
        model, opt, dl = acc.prepare(build(cfg), make_opt(cfg), loader(cfg))
        corrupt = Corruptor(cfg.seed)
        for batch in dl:
            loss = model(corrupt(batch["ids"]), labels=batch["ids"]).loss
            acc.backward(loss); opt.step(); opt.zero_grad()
""")  # fmt: skip
right("S96", """
    import torch, torch.distributed as dist
    class Noiser:
        def __init__(self, seed, device):
            self.gen = torch.Generator(device).manual_seed(seed)
        def add(self, x):
            return x + torch.randn(x.shape, generator=self.gen, device=x.device)
    def main(net, loader, opt, args):
        dist.init_process_group("nccl")
        rank = dist.get_rank()
        noise = Noiser(args.seed * 1000 + rank, "cuda")
        for x in loader:
            loss = net(noise.add(x)).mean()
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
# --- S97 ---
fault("S97", """
    import torch
    def perturb(x, scale):
        torch.manual_seed(3)
        return x + scale * torch.randn_like(x)
""")  # fmt: skip
right("S97", """
    import torch
    def preview(model, n=8):
        torch.manual_seed(0)
        return model.sample(torch.randn(n, 3, 32, 32))
    def split(files, seed=3):
        import random
        random.seed(seed)
        random.shuffle(files)
        return files[10:], files[:10]
    def evaluate(model, prompts):
        torch.manual_seed(1)
        return [model.generate(p, do_sample=True) for p in prompts]
""")  # fmt: skip
# --- S98 ---
fault("S98", """
    import torch, torch.nn as nn
    class DropPath(nn.Module):
        def __init__(self, p):
            super().__init__(); self.p = p
        def forward(self, x):
            if not self.training or self.p == 0: return x
            keep = torch.empty(1, 1, 1, device=x.device).bernoulli_(1 - self.p)
            return x * keep / (1 - self.p)

    class Block(nn.Module):
        def __init__(self, d, p):
            super().__init__(); self.mlp = nn.Linear(d, d); self.dp = DropPath(p)
        def forward(self, x):
            return x + self.dp(self.mlp(x))
""")  # fmt: skip
fault("S98", """
    import torch
    class VAE(torch.nn.Module):
        def encode(self, x):
            mu, logvar = self.enc(x).chunk(2, dim=-1)
            eps = torch.randn(mu.shape[-1], device=mu.device)
            return mu + eps * (0.5 * logvar).exp()
        def forward(self, x):
            return self.dec(self.encode(x))
""")  # fmt: skip
right("S98", """
    import torch
    def flow_step(net, x1, opt):
        b = x1.shape[0]
        t = torch.rand(b, 1, device=x1.device)
        x0 = torch.randn_like(x1)
        xt = (1 - t) * x0 + t * x1
        loss = ((net(xt, t) - (x1 - x0)) ** 2).mean()
        loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
right("S98", """
    import torch, torch.nn as nn
    class Tok(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.mask = nn.Parameter(torch.randn(1, 1, d) * 0.02)
            self.pos = torch.randn(1, 10, d)
        def forward(self, x):
            if torch.rand(1).item() < 0.1:
                x = x * 0 + self.mask
            return x + self.mask
        def reset_parameters(self):
            w = torch.randn(1, 5); self.mask.data.copy_(w * self.mask)
""")  # fmt: skip
right("S98", """
    import torch
    class VAE(torch.nn.Module):
        def encode(self, x):
            mu, logvar = self.enc(x).chunk(2, dim=-1)
            eps = torch.randn(mu.shape[0], mu.shape[-1], device=mu.device)
            return mu + eps * (0.5 * logvar).exp()
        @torch.no_grad()
        def sample_one(self):
            z = torch.randn(1, 16)
            y = self.dec(z)
            return y * 0.5 + 0.5
""")  # fmt: skip


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule: str, code: str) -> None:
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_what_is_right_is_left_alone(rule: str, code: str) -> None:
    check_right(rule, code)
