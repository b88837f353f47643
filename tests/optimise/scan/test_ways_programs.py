"""Faults of programs in many people's ways of writing: compiling, devices, checkpoints."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- compile ---------------------------------------------------------------------------------------------------------
fault("compile", "plain while", """
    import torch
    def fit(net, opt, src, crit):
        it = iter(src)
        while True:  # <-
            try:
                x, y = next(it)
            except StopIteration:
                break
            opt.zero_grad()
            l = crit(net(x), y)
            l.backward()
            opt.step()
""")  # fmt: skip
fault("compile", "eval only compiled", """
    import torch
    def main(model, loader, val, opt):
        fast = torch.compile(model)
        for step, (x, y) in enumerate(loader):  # <-
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % 1000 == 0:
                with torch.no_grad():
                    print(sum(fast(a, b) for a, b in val))
""")  # fmt: skip
fault("compile", "flag off dataclass", """
    import torch
    from dataclasses import dataclass
    @dataclass
    class Cfg:
        use_compile: bool = False
    def main(model, loader, opt, cfg=Cfg()):
        if cfg.use_compile:
            model = torch.compile(model)  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "after trainer", """
    import torch
    class Trainer:
        def __init__(self, model, opt):
            self.model, self.opt = model, opt
        def fit(self, loader):
            for x, y in loader:
                loss = self.model(x, y)
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
    def main(net, opt, loader):
        trainer = Trainer(net, opt)
        net = torch.compile(net)  # <-
        trainer.fit(loader)
""")  # fmt: skip
fault("compile", "loss only", """
    import torch
    import torch.nn.functional as F
    @torch.compile
    def ce(logits, y):
        return F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))
    def main(model, loader, opt):
        for x, y in loader:  # <-
            loss = ce(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "accelerate", """
    from accelerate import Accelerator
    def main(model, opt, loader):
        accelerator = Accelerator(mixed_precision="bf16")
        model, opt, loader = accelerator.prepare(model, opt, loader)
        for batch in loader:  # <-
            loss = model(**batch).loss
            accelerator.backward(loss)
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "fabric", """
    from lightning.fabric import Fabric
    def main(model, opt, loader):
        fabric = Fabric(precision="bf16-mixed")
        fabric.launch()
        model, opt = fabric.setup(model, opt)
        loader = fabric.setup_dataloaders(loader)
        for x, y in loader:  # <-
            loss = model(x, y)
            fabric.backward(loss)
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "closure step", """
    import torch
    def main(model, loader):
        opt = torch.optim.LBFGS(model.parameters())
        for x, y in loader:  # <-
            def closure():
                opt.zero_grad()
                loss = torch.nn.functional.mse_loss(model(x), y)
                loss.backward()
                return loss
            opt.step(closure)
""")  # fmt: skip
fault("compile", "hf trainer", """
    from transformers import Trainer, TrainingArguments
    def main(model, ds):
        args = TrainingArguments("out", bf16=True, per_device_train_batch_size=16)  # <-
        Trainer(model, args, train_dataset=ds).train()
""")  # fmt: skip
fault("compile", "lightning", """
    import pytorch_lightning as pl
    class Lit(pl.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def training_step(self, batch, _):
            x, y = batch
            return self.net(x, y)
    def main(net, loader):
        pl.Trainer(max_epochs=1).fit(Lit(net), loader)  # <-
""")  # fmt: skip
fault("compile", "in epoch loop", """
    import torch
    def main(model, make_loader, opt):
        for epoch in range(10):
            m = torch.compile(model)  # <-
            for x, y in make_loader(epoch):
                loss = m(x, y)
                loss.backward()
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("compile", "in step", """
    import torch
    class T:
        def _step(self, x, y):
            fwd = torch.compile(self.model, mode="reduce-overhead")  # <-
            loss = fwd(x, y)
            loss.backward()
            self.opt.step()
            self.opt.zero_grad()
        def run(self):
            for x, y in self.loader:
                self._step(x, y)
""")  # fmt: skip
fault("compile", "lambda each step", """
    import torch
    def main(model, loader, opt):
        for x, y in loader:
            loss_of = torch.compile(lambda a, b: model(a, b))  # <-
            loss = loss_of(x, y)
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "pad to longest", """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader
    def collate(rows):
        x = pad_sequence([r[:-1] for r in rows], batch_first=True)
        y = pad_sequence([r[1:] for r in rows], batch_first=True, padding_value=-100)
        return x, y
    def main(model, ds, opt):
        model = torch.compile(model)  # <-
        for x, y in DataLoader(ds, batch_size=32, collate_fn=collate):
            loss = model(x, y)
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "curriculum", """
    import torch
    def seq_len_at(step):
        return min(1024, 64 + 8 * (step // 100))
    def main(model, loader, opt):
        model = torch.compile(model, dynamic=False)  # <-
        for step, (x, y) in enumerate(loader):
            n = seq_len_at(step)
            loss = model(x[:, :n], y[:, :n])
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "trim", """
    import torch
    def main(model, loader, opt, pad):
        model = torch.compile(model, mode="max-autotune")  # <-
        for ids, y in loader:
            keep = int((ids != pad).sum(1).max())
            loss = model(ids[:, :keep], y[:, :keep])
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "multi scale", """
    import random, torch
    import torch.nn.functional as F
    SIZES = (192, 224, 256, 288)
    def main(model, loader, opt):
        net = torch.compile(model)  # <-
        for x, y in loader:
            s = random.choice(SIZES)
            x = F.interpolate(x, size=(s, s))
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "decorated step", """
    import torch, random
    @torch.compile
    def train_step(model, x, y):  # <-
        loss = model(x, y)
        loss.backward()
        return loss
    def main(model, data, opt):
        for _ in range(1000):
            T = random.randint(128, 512)
            i = random.randrange(len(data) - T - 1)
            x, y = data[i:i + T], data[i + 1:i + 1 + T]
            train_step(model, x[None], y[None])
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "decorated functional", """
    import random, torch
    from torch.func import functional_call
    def main(net, loader, opt):
        params = dict(net.named_parameters())
        @torch.compile(dynamic=False)
        def fwd(w, x):  # <-
            return functional_call(net, w, (x,))
        for x, y in loader:
            n = random.randint(32, 512)
            loss = fwd(params, x[:, :n]).mean()
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "numpy length", """
    import numpy as np, torch
    def main(model, data, opt):
        rng = np.random.default_rng(0)
        model = torch.compile(model, fullgraph=True)  # <-
        for step in range(1000):
            length = int(rng.integers(64, 1024))
            x = data.batch(32, length)
            loss = model(x[:, :-1], x[:, 1:])
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "decode growing", """
    import torch
    @torch.no_grad()
    def generate(model, ids, n):
        step = torch.compile(model, dynamic=False)  # <-
        for _ in range(n):
            logits = step(ids)
            nxt = logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, nxt], dim=1)
        return ids
""")  # fmt: skip
fault("compile", "self attr unused", """
    import torch
    class Runner:
        def __init__(self, model, opt):
            self.model = model
            self.compiled = torch.compile(model)  # <-
            self.opt = opt
        def train(self, loader):
            for x, y in loader:
                loss = self.model(x, y)
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
""")  # fmt: skip
fault("compile", "thrown away", """
    import torch
    def main(model, loader, opt):
        torch.compile(model)  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "env switch", """
    import os, torch
    COMPILE = os.environ.get("COMPILE", "0") == "1"
    def main(model, loader, opt):
        model = torch.compile(model) if COMPILE else model  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "store true", """
    import argparse, torch
    def main(model, loader, opt):
        p = argparse.ArgumentParser()
        p.add_argument("--compile", action="store_true")
        args = p.parse_args()
        if args.compile:
            model = torch.compile(model)  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "gan", """
    import torch
    def main(gen, disc, og, od, loader, bce):
        for real in loader:  # <-
            z = torch.randn(real.size(0), 64, device=real.device)
            fake = gen(z)
            d = bce(disc(real), 1) + bce(disc(fake.detach()), 0)
            od.zero_grad(); d.backward(); od.step()
            g = bce(disc(fake), 1)
            og.zero_grad(); g.backward(); og.step()
""")  # fmt: skip
fault("compile", "rl", """
    import torch
    def ppo(policy, optim, buffer, epochs=4):
        for _ in range(epochs):
            for obs, act, adv, old in buffer.minibatches():  # <-
                logp = policy.log_prob(obs, act)
                ratio = (logp - old).exp()
                loss = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
                optim.zero_grad()
                loss.backward()
                optim.step()
""")  # fmt: skip
fault("compile", "cudagraph mode shapes last batch", """
    import torch
    from torch.utils.data import DataLoader
    def main(model, ds, opt, bucket):
        model = torch.compile(model, dynamic=False)  # <-
        for batch in DataLoader(ds, batch_sampler=bucket, collate_fn=lambda rows: collate(rows)):
            x, y = batch
            loss = model(x, y)
            loss.backward()
            opt.step(); opt.zero_grad()
    def collate(rows):
        width = max(map(len, rows))
        x = torch.zeros(len(rows), width, dtype=torch.long)
        y = torch.full((len(rows), width), -100)
        for i, r in enumerate(rows):
            x[i, :len(r)] = r
            y[i, :len(r)] = r
        return x, y
""")  # fmt: skip
fault("compile", "setattr forward not used", """
    import torch
    def main(model, loader, opt):
        fwd = torch.compile(model.forward)
        del fwd  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "compiled in place", """
    import torch
    def main(model, loader, opt):
        model.compile()
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "helper", """
    import torch
    def prepare(model, on=True):
        return torch.compile(model) if on else model
    def main(net, loader, opt):
        model = prepare(net)
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "compiled submodules", """
    import torch
    def main(model, loader, opt):
        for i, block in enumerate(model.blocks):
            model.blocks[i] = torch.compile(block)
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "decorated step fixed", """
    import torch
    @torch.compile
    def fwd(model, x, y):
        return model(x, y)
    def main(model, loader, opt):
        for x, y in loader:
            loss = fwd(model, x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "dynamic ok", """
    import random, torch
    def main(model, loader, opt):
        model = torch.compile(model, dynamic=True)
        for x, y in loader:
            n = random.randint(32, 512)
            loss = model(x[:, :n], y[:, :n])
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
right("compile", "mark dynamic", """
    import random, torch
    def main(model, loader, opt):
        model = torch.compile(model)
        for x, y in loader:
            n = random.randint(32, 512)
            x = x[:, :n]
            torch._dynamo.mark_dynamic(x, 1)
            loss = model(x, y[:, :n])
            loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
right("compile", "dataclass default on", """
    import torch
    from dataclasses import dataclass
    @dataclass
    class Cfg:
        compile: bool = True
    def main(model, loader, opt, cfg=Cfg()):
        step_model = torch.compile(model) if cfg.compile else model
        for x, y in loader:
            loss = step_model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
# --- device-string ---------------------------------------------------------------------------------------------------
fault("device-string", "local", """
    import torch
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    pin = device == 'cuda'  # <-
""")  # fmt: skip
fault("device-string", "param annotated", """
    import torch
    def amp(device: torch.device):
        return torch.bfloat16 if device == 'cuda' else torch.float32  # <-
""")  # fmt: skip
fault("device-string", "in tuple", """
    import torch
    def go(x: torch.Tensor):
        if x.device in ('cuda', 'mps'):  # <-
            return x.half()
        return x
""")  # fmt: skip
fault("device-string", "model params", """
    import torch
    def fast(model):
        return next(model.parameters()).device != 'cpu'  # <-
""")  # fmt: skip
fault("device-string", "helper", """
    import torch
    def pick():
        if torch.cuda.is_available():
            return torch.device('cuda')
        return torch.device('cpu')
    class T:
        def __init__(self):
            self.device = pick()
        def loader(self, ds):
            return torch.utils.data.DataLoader(ds, pin_memory=self.device == 'cuda')  # <-
""")  # fmt: skip
fault("device-string", "match", """
    import torch
    def sync(dev: torch.device):
        match dev:  # <-
            case 'cuda':
                torch.cuda.synchronize()
            case 'mps':
                torch.mps.synchronize()
""")  # fmt: skip
fault("device-string", "dict", """
    import torch
    DT = {'cuda': torch.bfloat16, 'cpu': torch.float32}
    def dtype(t):
        dev = torch.device(t)
        return DT[dev]  # <-
""")  # fmt: skip
fault("device-string", "dict get", """
    import torch
    def dtype():
        d = torch.device('cuda:0')
        return {'cuda': torch.float16}.get(d, torch.float32)  # <-
""")  # fmt: skip
fault("device-string", "str of tensor device", """
    import torch
    def f(x: torch.Tensor):
        if str(x.device) == 'cuda':  # <-
            return x.half()
""")  # fmt: skip
fault("device-string", "type with index", """
    import torch
    def f(device: torch.device):
        if device.type == 'cuda:0':  # <-
            torch.cuda.set_device(0)
""")  # fmt: skip
fault("device-string", "accelerator", """
    import torch
    from accelerate import Accelerator
    def main():
        accelerator = Accelerator()
        if accelerator.device == 'cuda':  # <-
            torch.backends.cudnn.benchmark = True
""")  # fmt: skip
fault("device-string", "lightning", """
    import torch
    import lightning as L
    class M(L.LightningModule):
        def on_fit_start(self):
            if self.device == 'cuda':  # <-
                torch.set_float32_matmul_precision('high')
""")  # fmt: skip
fault("device-string", "buffer", """
    import torch
    from torch import nn
    class R(nn.Module):
        def forward(self, x):
            if self.weight.device == 'cpu':  # <-
                return x.float()
            return x
""")  # fmt: skip
fault("device-string", "any", """
    import torch
    def f(device: torch.device):
        return any(device == k for k in ('cuda', 'mps'))  # <-
""")  # fmt: skip
fault("device-string", "or chain", """
    import torch
    d = torch.device('cuda')
    use_amp = d == 'cuda' or d == 'xpu'  # <-
""")  # fmt: skip
fault("device-string", "named const", """
    import torch
    CUDA = 'cuda'
    def f(x: torch.Tensor):
        return x.device == CUDA  # <-
""")  # fmt: skip
fault("device-string", "enabled", """
    import torch
    device = torch.device('cuda')
    scaler = torch.amp.GradScaler(enabled=(device == 'cuda'))  # <-
""")  # fmt: skip
fault("device-string", "conditional import", """
    import torch
    def setup(args):
        device = torch.device(args.device)
        if 'cuda' == device:  # <-
            torch.cuda.set_device(0)
        return device
""")  # fmt: skip
fault("device-string", "contains", """
    import torch
    device = torch.device('cuda:1')
    if 'cuda' in device:  # <-
        print('gpu')
""")  # fmt: skip
fault("device-string", "dataclass field", """
    import torch
    from dataclasses import dataclass
    @dataclass
    class Ctx:
        device: torch.device
        rank: int = 0
    def main(ctx: Ctx):
        if ctx.device == 'cuda':  # <-
            torch.cuda.empty_cache()
""")  # fmt: skip
fault("device-string", "property", """
    import torch
    class E:
        @property
        def device(self):
            return self.model.lm_head.weight.device
        def run(self):
            if self.device == 'cuda':  # <-
                torch.cuda.synchronize()
""")  # fmt: skip
fault("device-string", "tuple unpack", """
    import torch
    def init():
        return 0, torch.device('cuda', 0)
    def main():
        rank, device = init()
        if device == 'cuda':  # <-
            pass
""")  # fmt: skip
fault("device-string", "list index", """
    import torch
    devs = [torch.device('cuda', i) for i in range(4)]
    for d in devs:
        if d == 'cuda':  # <-
            print(d)
""")  # fmt: skip
fault("device-string", "fstring", """
    import torch
    def f(rank):
        device = torch.device('cuda', rank)
        return device == f'cuda:{rank}'  # <-
""")  # fmt: skip
fault("device-string", "tensor made", """
    import torch
    x = torch.zeros(3)
    assert x.device == 'cpu'  # <-
""")  # fmt: skip
fault("device-string", "is", """
    import torch
    def f(device: torch.device):
        if device is 'cuda':  # <-
            return 1
""")  # fmt: skip
fault("device-string", "walrus", """
    import torch
    def f(model):
        if (d := next(model.parameters()).device) == 'cuda':  # <-
            return d
""")  # fmt: skip
fault("device-string", "optional ann", """
    import torch
    from typing import Optional
    def f(device: Optional[torch.device] = None):
        device = device or torch.device('cpu')
        if device != 'cpu':  # <-
            torch.cuda.init()
""")  # fmt: skip
fault("device-string", "kw call", """
    import torch
    def loader(ds, pin):
        return torch.utils.data.DataLoader(ds, pin_memory=pin)
    def main(ds):
        dev = torch.device('cuda')
        return loader(ds, pin=(dev == 'cuda'))  # <-
""")  # fmt: skip
fault("device-string", "set member", """
    import torch
    GPU = {'cuda', 'xpu', 'mps'}
    def f(model):
        p = next(iter(model.parameters()))
        return p.device in GPU  # <-
""")  # fmt: skip
fault("device-string", "name only param", """
    import torch
    def autocast_for(model, device):
        model.to(device)
        if device == 'cuda':  # <-
            return torch.autocast('cuda')
    def main(model):
        autocast_for(model, device=torch.device('cuda'))
""")  # fmt: skip
fault("device-string", "table of functions", """
    import torch
    SYNC = {'cuda': torch.cuda.synchronize, 'mps': torch.mps.synchronize}
    class Timer:
        def __init__(self, device):
            self.device = torch.device(device)
        def stop(self):
            if self.device in SYNC:  # <-
                SYNC[self.device]()
""")  # fmt: skip
fault("device-string", "global env", """
    import torch
    import os
    DEVICE = torch.device(os.environ.get('DEVICE', 'cuda'))
    def f():
        return 2 if DEVICE == 'cuda' else 0  # <-
""")  # fmt: skip
fault("device-string", "kwargs dict", """
    import torch
    CFG = {'device': torch.device('cuda'), 'bs': 3}
    workers = 4 if CFG['device'] == 'cuda' else 0  # <-
""")  # fmt: skip
fault("device-string", "module level helper in other file", """
    === main.py
    from dev import get
    d = get()
    if d == 'cuda':  # <-
        print(1)
    === dev.py
    import torch
    def get():
        return torch.device('cuda')
""")  # fmt: skip
right("device-string", "type", """
    import torch
    d = torch.device('cuda')
    print(d.type == 'cuda')
""")  # fmt: skip
right("device-string", "str param", """
    import torch
    def f(device: str):
        return device == 'cuda'
""")  # fmt: skip
right("device-string", "args", """
    import torch
    import argparse
    p = argparse.ArgumentParser()
    p.add_argument('--device', default='cuda')
    a = p.parse_args()
    if a.device == 'cuda':
        pass
""")  # fmt: skip
right("device-string", "device vs device", """
    import torch
    x = torch.zeros(3)
    print(x.device == torch.device('cuda'))
""")  # fmt: skip
right("device-string", "str type", """
    import torch
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda':
        pass
    device = 'cpu'
""")  # fmt: skip
right("device-string", "str cpu", """
    import torch
    def f(x):
        return str(x.device) == 'cpu'
""")  # fmt: skip
right("device-string", "str startswith", """
    import torch
    def f(x):
        return str(x.device).startswith('cuda')
""")  # fmt: skip
right("device-string", "string kept then device", """
    import torch
    def f(name):
        pin = name == 'cuda'
        device = torch.device(name)
        return device, pin
""")  # fmt: skip
# --- checkpoint ------------------------------------------------------------------------------------------------------
fault("checkpoint", "plain", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, opt, step, path):
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "step": step}, path)  # <-
""")  # fmt: skip
fault("checkpoint", "open wb", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, path):
        with open(path, "wb") as f:
            torch.save(model.state_dict(), f)  # <-
""")  # fmt: skip
fault("checkpoint", "pickle", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def dump(trainer, path):
        with open(path, "wb") as f:
            pickle.dump(trainer.state(), f)  # <-
""")  # fmt: skip
fault("checkpoint", "safetensors", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    from safetensors.torch import save_file
    def export(model, out):
        save_file(model.state_dict(), out / "model.safetensors")  # <-
""")  # fmt: skip
fault("checkpoint", "safetensors save model", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    from safetensors.torch import save_model
    def keep(net, out):
        save_model(net, f"{out}/last.safetensors")  # <-
""")  # fmt: skip
fault("checkpoint", "np savez", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import numpy as np
    def save(params, path):
        np.savez(path, **{k: v.cpu().numpy() for k, v in params.items()})  # <-
""")  # fmt: skip
fault("checkpoint", "np save each", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import numpy as np
    def save_weights(model, folder):
        for name, p in model.named_parameters():
            np.save(folder / f"{name}.npy", p.detach().cpu().numpy())  # <-
""")  # fmt: skip
fault("checkpoint", "json state", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save_state(state, path):
        with open(path, "w") as f:
            json.dump({"step": state.step, "rng": state.rng, "best_loss": state.best}, f)  # <-
    def train(model, opt, loader, state):
        for x, y in loader:
            loss = model(x, y); loss.backward(); opt.step(); opt.zero_grad()
            save_state(state, "trainer_state.json")
    def resume(path):
        return json.load(open(path))
""")  # fmt: skip
fault("checkpoint", "write text", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save_progress(path: Path, step, epoch, loader_state):
        path.write_text(json.dumps({"step": step, "epoch": epoch, "loader": loader_state}))  # <-
""")  # fmt: skip
fault("checkpoint", "save pretrained", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def checkpoint(model, tok, out):
        model.save_pretrained(out)  # <-
        tok.save_pretrained(out)
    def train(model, opt, loader, tok):
        for i, b in enumerate(loader):
            loss = model(**b).loss; loss.backward(); opt.step(); opt.zero_grad()
            if i % 500 == 0:
                checkpoint(model, tok, "out/last")
""")  # fmt: skip
fault("checkpoint", "accelerator save state", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    from accelerate import Accelerator
    def main(model, opt, loader):
        accelerator = Accelerator()
        for i, b in enumerate(loader):
            loss = model(**b).loss
            accelerator.backward(loss); opt.step(); opt.zero_grad()
            if i % 1000 == 0:
                accelerator.save_state("ckpt/latest")  # <-
""")  # fmt: skip
fault("checkpoint", "fabric save", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    from lightning.fabric import Fabric
    def main(fabric, model, opt, loader):
        for i, b in enumerate(loader):
            loss = model(b); fabric.backward(loss); opt.step(); opt.zero_grad()
            if i % 1000 == 0:
                torch.save(dict(model=model, opt=opt), "last.ckpt")  # <-
""")  # fmt: skip
fault("checkpoint", "backup rename then in place", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(state, path):
        if os.path.exists(path):
            os.replace(path, path + ".bak")
        torch.save(state, path)  # <-
    def train(model, opt, loader):
        for i, b in enumerate(loader):
            save({"m": model.state_dict()}, "last.pt")
""")  # fmt: skip
fault("checkpoint", "remove then rename", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, path):
        tmp = path + ".tmp"
        torch.save(model.state_dict(), tmp)
        if os.path.exists(path):
            os.remove(path)  # <-
        os.rename(tmp, path)
""")  # fmt: skip
fault("checkpoint", "tmp then copy", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, path):
        torch.save(model.state_dict(), "/tmp/ckpt.pt")
        shutil.copyfile("/tmp/ckpt.pt", path)  # <-
""")  # fmt: skip
fault("checkpoint", "delete old first", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, opt, folder, step):
        for old in folder.glob("*.pt"):
            old.unlink()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, folder / f"step{step}.pt")  # <-
""")  # fmt: skip
fault("checkpoint", "rmtree then save", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, out):
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        model.save_pretrained(out)  # <-
""")  # fmt: skip
fault("checkpoint", "latest copy", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, opt, step, out):
        name = f"{out}/step_{step}.pt"
        tmp = name + ".tmp"
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp)
        os.replace(tmp, name)
        shutil.copy(name, f"{out}/latest.pt")  # <-
""")  # fmt: skip
fault("checkpoint", "dcp", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import torch.distributed.checkpoint as dcp
    def save(model, opt, folder):
        dcp.save({"model": model.state_dict(), "optim": opt.state_dict()}, checkpoint_id=folder)  # <-
""")  # fmt: skip
fault("checkpoint", "buffer bytes", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import io
    def save(model, path):
        buf = io.BytesIO()
        torch.save(model.state_dict(), buf)
        with open(path, "wb") as f:
            f.write(buf.getvalue())  # <-
""")  # fmt: skip
fault("checkpoint", "h5py", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import h5py
    def save(model, path):
        with h5py.File(path, "w") as f:  # <-
            for k, v in model.state_dict().items():
                f.create_dataset(k, data=v.cpu().numpy())
""")  # fmt: skip
fault("checkpoint", "joblib", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import joblib
    def save(agent, path):
        joblib.dump(agent.params, path)  # <-
""")  # fmt: skip
fault("checkpoint", "jit save", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def export(model, path):
        torch.jit.save(torch.jit.script(model), path)  # <-
""")  # fmt: skip
fault("checkpoint", "generic helper", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def write(obj, path):
        torch.save(obj, path)  # <-
    class Trainer:
        def on_step(self):
            if self.step % 100 == 0:
                write({"w": self.model.state_dict(), "n": self.step}, self.out / "last.pt")
""")  # fmt: skip
fault("checkpoint", "async thread", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import threading
    class Saver:
        def save(self, model, path):
            state = {k: v.cpu() for k, v in model.state_dict().items()}
            threading.Thread(target=torch.save, args=(state, path)).start()  # <-
""")  # fmt: skip
fault("checkpoint", "partial", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    from functools import partial
    save = partial(torch.save, _use_new_zipfile_serialization=True)
    def keep(model, path):
        save(model.state_dict(), path)  # <-
""")  # fmt: skip
fault("checkpoint", "zip", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import zipfile
    def save(model, path):
        with zipfile.ZipFile(path, "w") as z:  # <-
            for k, v in model.state_dict().items():
                z.writestr(k, v.cpu().numpy().tobytes())
""")  # fmt: skip
fault("checkpoint", "trainer class lightning callback", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import lightning as L
    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *a):
            if trainer.global_step % 100 == 0:
                torch.save(pl_module.state_dict(), "last.ckpt")  # <-
""")  # fmt: skip
fault("checkpoint", "method wrapper", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    class Checkpointer:
        def __init__(self, root): self.root = Path(root)
        def __call__(self, **parts):
            target = self.root / "state.pt"
            torch.save({k: p.state_dict() for k, p in parts.items()}, target)  # <-
""")  # fmt: skip
fault("checkpoint", "memmap", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import numpy as np
    def flush(weights, path):
        weights.cpu().numpy().tofile(path)  # <-
""")  # fmt: skip
right("checkpoint", "atomic", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(state, path):
        tmp = f"{path}.tmp"
        torch.save(state, tmp)
        os.replace(tmp, path)
    def main(model): save(model.state_dict(), "a.pt")
""")  # fmt: skip
right("checkpoint", "atomic pathlib", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, path):
        part = path.with_suffix(".partial")
        torch.save(model.state_dict(), part)
        part.replace(path)
""")  # fmt: skip
right("checkpoint", "results json", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def report(rows, path):
        with open(path, "w") as f:
            json.dump({"accuracy": rows.acc, "loss": rows.loss}, f)
""")  # fmt: skip
right("checkpoint", "tokens", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import numpy as np
    def shard(tokens, path):
        np.save(path, tokens)
""")  # fmt: skip
right("checkpoint", "atomic folder", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def save(model, out):
        tmp = out + ".tmp"
        model.save_pretrained(tmp)
        os.rename(tmp, out)
""")  # fmt: skip
right("checkpoint", "buffer only", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    import io
    def to_bytes(model):
        b = io.BytesIO()
        torch.save(model.state_dict(), b)
        return b.getvalue()
""")  # fmt: skip
right("checkpoint", "atomic helper elsewhere", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    def _replace(tmp, path):
        os.replace(tmp, path)
    def save(model, path):
        scratch = path + ".new"
        torch.save(model.state_dict(), scratch)
        _replace(scratch, path)
""")  # fmt: skip
right("checkpoint", "context atomic", """
    import torch, os, json, shutil, pickle
    from pathlib import Path

    from contextlib import contextmanager
    @contextmanager
    def atomic(path):
        tmp = path + ".tmp"
        with open(tmp, "wb") as f:
            yield f
            f.flush(); os.fsync(f.fileno())
        os.replace(tmp, path)
    def save(model, path):
        with atomic(path) as f:
            torch.save(model.state_dict(), f)
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WAYS.variants])
def test_each_way_of_writing_a_fault_of_programs_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
