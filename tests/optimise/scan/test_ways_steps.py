"""Faults of training steps in many people's ways of writing: accumulation, reads, casts."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- accumulation ----------------------------------------------------------------------------------------------------
fault("accumulation", "not divided guard", """
    import torch

    def train(model, opt, loader, n):
        for i, (x, y) in enumerate(loader):
            loss = model(x, y)
            loss.backward()  # <-
            if (i + 1) % n == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "counter set back", """
    import torch

    def train(model, opt, loader, every=8):
        seen = 0
        for x, y in loader:
            loss = model(x, y)
            loss.backward()  # <-
            seen += 1
            if seen == every:
                opt.step()
                opt.zero_grad()
                seen = 0
""")  # fmt: skip
fault("accumulation", "counter ge set back elsewhere", """
    import torch

    class T:
        def micro(self, x, y):
            loss = self.model(x, y)
            loss.backward()  # <-
            self.pending += 1
            if self.pending >= self.n:
                self.flush()
        def flush(self):
            self.opt.step()
            self.opt.zero_grad()
            self.pending = 0
        def run(self, loader):
            for x, y in loader:
                self.micro(x, y)
""")  # fmt: skip
fault("accumulation", "wrong divisor", """
    import torch

    def train(model, opt, loader, accum, batch_size):
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / batch_size
            loss.backward()  # <-
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "double division", """
    import torch

    def micro_loss(model, x, y, accum):
        return model(x, y) / accum
    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            loss = micro_loss(model, x, y, accum)
            (loss / accum).backward()  # <-
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "step each micro", """
    import torch

    def train(model, opt, loader, accum):
        for x, y in loader:
            for xs, ys in zip(x.chunk(accum), y.chunk(accum)):
                loss = model(xs, ys) / accum
                loss.backward()
                opt.step()  # <-
            opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "zero grad in micro", """
    import torch

    def train(model, opt, batches, accum):
        for step in range(100):
            for k in range(accum):
                opt.zero_grad()  # <-
                x, y = next(batches)
                (model(x, y) / accum).backward()
            opt.step()
""")  # fmt: skip
fault("accumulation", "param grad none in micro", """
    import torch

    def train(model, opt, batches, accum):
        for step in range(100):
            for k in range(accum):
                for p in model.parameters():
                    p.grad = None  # <-
                x, y = next(batches)
                (model(x, y) / accum).backward()
            opt.step()
""")  # fmt: skip
fault("accumulation", "p.grad.zero ", """
    import torch

    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.zero_()  # <-
            (model(x, y) / accum).backward()
            if (i + 1) % accum == 0:
                opt.step()
""")  # fmt: skip
fault("accumulation", "ddp", """
    import torch

    from torch.nn.parallel import DistributedDataParallel as DDP
    def train(net, opt, loader, accum, rank):
        model = DDP(net, device_ids=[rank])
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / accum
            loss.backward()  # <-
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "ddp module attr", """
    import torch

    class T:
        def __init__(self, net, opt, rank):
            self.model = torch.nn.parallel.DistributedDataParallel(net, device_ids=[rank])
            self.opt = opt
        def step(self, micros):
            for x, y in micros:
                loss = self.model(x, y) / len(micros)
                loss.backward()  # <-
            self.opt.step()
            self.opt.zero_grad()
        def run(self, source):
            for micros in source:
                self.step(micros)
""")  # fmt: skip
fault("accumulation", "no sync inverted", """
    import torch

    from contextlib import nullcontext
    from torch.nn.parallel import DistributedDataParallel as DDP
    def train(net, opt, batches, accum):
        model = DDP(net)
        for step in range(10):
            for k in range(accum):
                ctx = model.no_sync() if k == accum - 1 else nullcontext()  # <-
                with ctx:
                    x, y = next(batches)
                    (model(x, y) / accum).backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "all reduce in micro", """
    import torch

    import torch.distributed as dist
    def train(model, opt, batches, accum):
        for step in range(10):
            for k in range(accum):
                x, y = next(batches)
                (model(x, y) / accum).backward()
                for p in model.parameters():
                    dist.all_reduce(p.grad)  # <-
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "all reduce helper", """
    import torch

    import torch.distributed as dist
    def average(params, world):
        for p in params:
            dist.all_reduce(p.grad)  # <-
            p.grad /= world
    def train(model, opt, loader, accum, world):
        for i, (x, y) in enumerate(loader):
            (model(x, y) / accum).backward()
            average(model.parameters(), world)
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "clip per micro", """
    import torch

    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            (model(x, y) / accum).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <-
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "sched per micro", """
    import torch

    def train(model, opt, sched, loader, accum):
        for i, (x, y) in enumerate(loader):
            (model(x, y) / accum).backward()
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
            sched.step()  # <-
""")  # fmt: skip
fault("accumulation", "accelerate double", """
    import torch

    from accelerate import Accelerator
    def main(model, opt, loader):
        acc = Accelerator(gradient_accumulation_steps=8)
        model, opt, loader = acc.prepare(model, opt, loader)
        for b in loader:
            with acc.accumulate(model):
                loss = model(**b).loss / 8
                acc.backward(loss)  # <-
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "accelerate double field", """
    import torch

    from accelerate import Accelerator
    def main(model, opt, loader, args):
        accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
        for b in loader:
            with accelerator.accumulate(model):
                loss = model(**b).loss
                loss = loss / args.gradient_accumulation_steps  # <-
                accelerator.backward(loss)
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "lightning double", """
    import torch

    import lightning as L
    class M(L.LightningModule):
        def training_step(self, batch, i):
            loss = self.net(*batch)
            return loss / self.trainer.accumulate_grad_batches  # <-
""")  # fmt: skip
fault("accumulation", "hf double", """
    import torch

    from transformers import Trainer
    class T(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kw):
            out = model(**inputs)
            loss = out.loss / self.args.gradient_accumulation_steps  # <-
            return (loss, out) if return_outputs else loss
""")  # fmt: skip
fault("accumulation", "deepspeed double", """
    import torch

    import deepspeed
    def main(model, loader, cfg):
        model_engine, *_ = deepspeed.initialize(model=model, config=cfg)
        for x, y in loader:
            loss = model_engine(x, y)
            loss = loss / model_engine.gradient_accumulation_steps()  # <-
            model_engine.backward(loss)
            model_engine.step()
""")  # fmt: skip
fault("accumulation", "missing eq zero", """
    import torch

    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            (model(x, y) / accum).backward()
            if (i + 1) % accum:  # <-
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "scaler update per micro", """
    import torch

    def train(model, opt, scaler, loader, accum):
        for i, (x, y) in enumerate(loader):
            scaler.scale(model(x, y) / accum).backward()
            scaler.unscale_(opt)  # <-
            if (i + 1) % accum == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "clip before unscale", """
    import torch

    def train(model, opt, scaler, loader, accum):
        for i, (x, y) in enumerate(loader):
            scaler.scale(model(x, y) / accum).backward()
            if (i + 1) % accum == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <-
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "sum reduction", """
    import torch

    import torch.nn.functional as F
    def train(model, opt, rows, accum):
        for step in range(100):
            for k in range(accum):
                x, y = rows.next()
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
                loss.backward()  # <-
            opt.step(); opt.zero_grad(set_to_none=True)
""")  # fmt: skip
fault("accumulation", "list of micro batches", """
    import torch

    def train_step(model, opt, micro_batches):
        opt.zero_grad()
        for mb in micro_batches:
            out = model(**mb)
            out.loss.backward()  # <-
        opt.step()
    def main(model, opt, src):
        for mbs in src:
            train_step(model, opt, mbs)
""")  # fmt: skip
fault("accumulation", "divide after backward", """
    import torch

    def train(model, opt, loader, accum):
        total = 0
        for i, (x, y) in enumerate(loader):
            loss = model(x, y)
            loss.backward()  # <-
            loss = loss / accum
            total += loss.detach()
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "multiplied", """
    import torch

    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) * accum
            loss.backward()  # <-
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "boundary flag function", """
    import torch

    def is_boundary(i, n):
        return (i + 1) % n == 0
    def train(model, opt, loader, n):
        for i, b in enumerate(loader):
            loss = model(b)
            loss.backward()  # <-
            if is_boundary(i, n):
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "while micro", """
    import torch

    def train(model, opt, it, target):
        for step in range(100):
            done = 0
            while done < target:
                x, y = next(it)
                loss = model(x, y)
                loss.backward()  # <-
                done += x.size(0)
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "step in helper each micro", """
    import torch

    def apply(opt):
        opt.step()  # <-
        opt.zero_grad(set_to_none=True)
    def run(model, opt, batch, micro):
        for part in batch.split(micro):
            loss = model(part) / (len(batch) // micro)
            loss.backward()
            apply(opt)
    def main(model, opt, loader):
        for b in loader:
            run(model, opt, b, 4)
""")  # fmt: skip
fault("accumulation", "fabric no sync missing", """
    import torch

    from lightning.fabric import Fabric
    def main(model, opt, loader, n):
        fabric = Fabric(devices=8, strategy="ddp")
        model, opt = fabric.setup(model, opt)
        for i, b in enumerate(loader):
            loss = model(b) / n
            fabric.backward(loss)  # <-
            if (i + 1) % n == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "fsdp2 no sync", """
    import torch

    from torch.distributed.fsdp import fully_shard
    def main(net, opt, loader, n):
        model = fully_shard(net)
        for i, b in enumerate(loader):
            (model(b) / n).backward()  # <-
            if (i + 1) % n == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "ema per micro", """
    import torch

    def train(model, ema, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            (model(x, y) / accum).backward()
            if (i + 1) % accum == 0:
                opt.step()
            opt.zero_grad()  # <-
""")  # fmt: skip
right("accumulation", "good", """
    import torch

    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            (model(x, y) / accum).backward()
            if (i + 1) % accum == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                opt.step(); opt.zero_grad()
""")  # fmt: skip
right("accumulation", "epochs", """
    import torch

    def train(model, opt, loader):
        for epoch in range(3):
            for x, y in loader:
                loss = model(x, y)
                loss.backward()
                opt.step(); opt.zero_grad()
""")  # fmt: skip
right("accumulation", "accelerate good", """
    import torch

    from accelerate import Accelerator
    def main(model, opt, loader):
        acc = Accelerator(gradient_accumulation_steps=8)
        for b in loader:
            with acc.accumulate(model):
                loss = model(**b).loss
                acc.backward(loss)
                if acc.sync_gradients:
                    acc.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
right("accumulation", "token weighted", """
    import torch

    import torch.nn.functional as F
    def step(model, opt, micros):
        n = sum((y != -100).sum() for _, y in micros)
        for x, y in micros:
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum") / n
            loss.backward()
        opt.step(); opt.zero_grad()
    def main(model, opt, src):
        for m in src:
            step(model, opt, m)
""")  # fmt: skip
right("accumulation", "no sync good", """
    import torch

    from contextlib import nullcontext
    from torch.nn.parallel import DistributedDataParallel as DDP
    def train(net, opt, batches, accum):
        model = DDP(net)
        for step in range(10):
            for k in range(accum):
                with nullcontext() if k == accum - 1 else model.no_sync():
                    x, y = next(batches)
                    (model(x, y) / accum).backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
right("accumulation", "several losses", """
    import torch

    def train(model, opt, loader, heads):
        for x, y in loader:
            h = model(x)
            for k, head in enumerate(heads):
                head(h, y).backward(retain_graph=True)
            opt.step(); opt.zero_grad()
""")  # fmt: skip
right("accumulation", "grad scaled after", """
    import torch

    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            model(x, y).backward()
            if (i + 1) % accum == 0:
                for p in model.parameters():
                    p.grad.div_(accum)
                opt.step(); opt.zero_grad()
""")  # fmt: skip
# --- host-sync -------------------------------------------------------------------------------------------------------
fault("host-sync", "ema", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        ema = 0.0
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            ema = 0.9 * ema + 0.1 * loss.item()  # <-
""")  # fmt: skip
fault("host-sync", "history", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        hist = []
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            hist.append(float(loss))  # <-
""")  # fmt: skip
fault("host-sync", "postfix", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            bar.set_postfix(loss=loss.item())  # <-
""")  # fmt: skip
fault("host-sync", "postfix dict", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            bar.set_postfix({'loss': f'{loss:.3f}'})  # <-
""")  # fmt: skip
fault("host-sync", "format", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            bar.set_description('loss %.3f' % loss)  # <-
""")  # fmt: skip
fault("host-sync", "wandb", """
    import torch, wandb
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            wandb.log({'loss': loss, 'step': step})  # <-
""")  # fmt: skip
fault("host-sync", "add scalar", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            writer.add_scalar('loss', loss, step)  # <-
""")  # fmt: skip
fault("host-sync", "np asarray", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            log.append(np.asarray(loss.detach().cpu()))  # <-
""")  # fmt: skip
fault("host-sync", "numpy force", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            log.append(loss.detach().numpy(force=True))  # <-
""")  # fmt: skip
fault("host-sync", "nan", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if torch.isnan(loss):  # <-
                raise RuntimeError('nan')
""")  # fmt: skip
fault("host-sync", "not finite", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if not torch.isfinite(loss).all():  # <-
                continue
""")  # fmt: skip
fault("host-sync", "math isnan", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            assert not math.isnan(loss)  # <-
""")  # fmt: skip
fault("host-sync", "gradnorm", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            total = 0.0
            for p in model.parameters():
                total += p.grad.norm().item() ** 2  # <-
""")  # fmt: skip
fault("host-sync", "clip", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if norm > 10:  # <-
                log.warning('big')
""")  # fmt: skip
fault("host-sync", "best", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        best = 1e9
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            best = min(best, loss.item())  # <-
""")  # fmt: skip
fault("host-sync", "acc", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        hits = 0
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            hits += (model(x).argmax(-1) == y).sum().item()  # <-
""")  # fmt: skip
fault("host-sync", "csv", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            writer.writerow([step, loss.item()])  # <-
""")  # fmt: skip
fault("host-sync", "json", """
    import torch, json
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            log.write(json.dumps({'loss': loss.item()}) + '\\n')  # <-
""")  # fmt: skip
fault("host-sync", "print f", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            print(f'{step} {loss}')  # <-
""")  # fmt: skip
fault("host-sync", "logging", """
    import torch, logging
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            logging.info('loss %s', loss)  # <-
""")  # fmt: skip
fault("host-sync", "logger", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            log.info('step %d loss %.4f', step, loss.item())  # <-
""")  # fmt: skip
fault("host-sync", "sync", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            torch.cuda.synchronize()  # <-
""")  # fmt: skip
fault("host-sync", "tocpu", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        losses = []
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.detach().to('cpu'))  # <-
""")  # fmt: skip
fault("host-sync", "dict comp", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            stats = {k: v.item() for k, v in {'loss': loss}.items()}  # <-
""")  # fmt: skip
fault("host-sync", "tolist", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            log.extend(loss.detach().view(1).tolist())  # <-
""")  # fmt: skip
fault("host-sync", "int", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            n = int((y != -100).sum())  # <-
            log.count(n)
""")  # fmt: skip
fault("host-sync", "masked sum", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        tokens = 0
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            tokens += (y != -100).sum().item()  # <-
""")  # fmt: skip
fault("host-sync", "deque mean", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        from collections import deque
        win = deque(maxlen=100)
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            win.append(loss.item())  # <-
""")  # fmt: skip
fault("host-sync", "round", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            log[step] = round(loss.item(), 4)  # <-
""")  # fmt: skip
fault("host-sync", "np.mean list", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            avg = np.mean([loss.item()])  # <-
""")  # fmt: skip
fault("host-sync", "mlflow", """
    import torch, mlflow
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            mlflow.log_metric('loss', loss, step=step)  # <-
""")  # fmt: skip
fault("host-sync", "rich", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        task = bar.add_task('t')
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            bar.update(task, loss=float(loss))  # <-
""")  # fmt: skip
fault("host-sync", "early stop", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if loss < 0.01:  # <-
                break
""")  # fmt: skip
fault("host-sync", "is cuda print lr", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            print(step, opt.param_groups[0]['lr'], loss)  # <-
""")  # fmt: skip
fault("host-sync", "len nonzero", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            idx = y.nonzero()  # <-
            log.n = len(idx)
""")  # fmt: skip
fault("host-sync", "unique", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        seen = set()
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            seen.update(y.unique().tolist())  # <-
""")  # fmt: skip
fault("host-sync", "scalar obj", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            loss_val = loss.detach().cpu().item()  # <-
            log.push(loss_val)
""")  # fmt: skip
fault("host-sync", "callback dict", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            for cb in log.callbacks:
                cb(step, dict(loss=loss.item()))  # <-
""")  # fmt: skip
fault("host-sync", "meter class", """
    import torch
    class AverageMeter:
        def __init__(self):
            self.sum, self.n = 0.0, 0
        def update(self, v, n=1):
            self.sum += float(v) * n  # <-
            self.n += n
    def train(model, opt, loader, device):
        meter = AverageMeter()
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            meter.update(loss, x.size(0))
        return meter.sum / meter.n
""")  # fmt: skip
fault("host-sync", "lightning log item", """
    import lightning as L
    import torch.nn.functional as F
    class M(L.LightningModule):
        def training_step(self, batch, idx):
            x, y = batch
            logits = self.net(x)
            loss = F.cross_entropy(logits, y)
            acc = (logits.argmax(-1) == y).float().mean()
            self.log("acc", acc.item())  # <-
            return loss
""")  # fmt: skip
fault("host-sync", "hf compute loss", """
    from transformers import Trainer
    class MyTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kw):
            out = model(**inputs)
            self.last_loss = out.loss.item()  # <-
            return (out.loss, out) if return_outputs else out.loss
""")  # fmt: skip
fault("host-sync", "callback hf", """
    import torch
    from transformers import Trainer
    class MyTrainer(Trainer):
        def training_step(self, model, inputs, *a):
            loss = super().training_step(model, inputs, *a)
            if torch.isnan(loss):  # <-
                raise ValueError("nan")
            return loss
""")  # fmt: skip
fault("host-sync", "micro accum item", """
    import torch
    def step(model, opt, micro, n):
        total = 0.0
        for x, y in micro:
            loss = model(x.cuda(), y.cuda()) / n
            loss.backward()
            total += loss.item()  # <-
        opt.step()
        opt.zero_grad()
        return total
    def main(model, opt, source):
        for micro in source:
            step(model, opt, micro, 8)
""")  # fmt: skip
fault("host-sync", "decode int", """
    import torch
    @torch.inference_mode()
    def generate(model, ids, n, eos):
        out = []
        cache = None
        for _ in range(n):
            logits, cache = model(ids, cache)
            tok = int(logits[0, -1].argmax())  # <-
            out.append(tok)
            if tok == eos:
                break
            ids = torch.tensor([[tok]], device=logits.device)
        return out
""")  # fmt: skip
fault("host-sync", "decode all eos", """
    import torch
    @torch.no_grad()
    def sample(model, ids, n, eos, cache):
        done = torch.zeros(ids.size(0), dtype=torch.bool, device=ids.device)
        cur = ids
        for _ in range(n):
            logits = model(cur, cache=cache)[:, -1]
            nxt = torch.multinomial(logits.softmax(-1), 1)
            done |= nxt.squeeze(1) == eos
            ids = torch.cat([ids, nxt], 1)
            if done.all():  # <-
                break
            cur = nxt
        return ids
""")  # fmt: skip
fault("host-sync", "decode stream print", """
    import torch
    def stream(model, tok, ids, n, cache):
        cur = ids
        for _ in range(n):
            logits = model(cur, cache)[:, -1]
            cur = logits.argmax(-1, keepdim=True)
            print(tok.decode(cur[0].tolist()), end="", flush=True)  # <-
""")  # fmt: skip
fault("host-sync", "decode eq if", """
    import torch
    def greedy(model, x, cache, stop, limit):
        toks = []
        while len(toks) < limit:
            x = model(x, cache)[:, -1].argmax(-1, keepdim=True)
            toks.append(x)
            if x[0, 0] == stop:  # <-
                break
        return torch.cat(toks, 1)
""")  # fmt: skip
fault("host-sync", "forward lengths", """
    import torch
    from torch import nn
    class Enc(nn.Module):
        def forward(self, x, lengths):
            n = lengths.max().item()  # <-
            return self.rnn(x[:, :n])
""")  # fmt: skip
fault("host-sync", "forward moe loop", """
    import torch
    from torch import nn
    class MoE(nn.Module):
        def forward(self, x):
            w, idx = self.gate(x).softmax(-1).topk(2)
            out = torch.zeros_like(x)
            counts = torch.bincount(idx.flatten(), minlength=self.n).tolist()  # <-
            for e, c in enumerate(counts):
                if c == 0:
                    continue
                r, k = torch.where(idx == e)
                out[r] += w[r, k, None] * self.experts[e](x[r])
            return out
""")  # fmt: skip
fault("host-sync", "forward if mask sum", """
    import torch
    from torch import nn
    class Attn(nn.Module):
        def forward(self, x, mask):
            if mask.sum() == 0:  # <-
                return x
            return self.attn(x, mask)
""")  # fmt: skip
fault("host-sync", "forward where expert", """
    import torch
    from torch import nn
    class MoE(nn.Module):
        def forward(self, x):
            idx = self.gate(x).argmax(-1)
            out = torch.zeros_like(x)
            for e, expert in enumerate(self.experts):
                sel = (idx == e).nonzero(as_tuple=True)[0]
                if sel.numel() > 0:  # <-
                    out[sel] = expert(x[sel])
            return out
""")  # fmt: skip
fault("host-sync", "forward float", """
    import torch
    from torch import nn
    class Q(nn.Module):
        def forward(self, x):
            scale = float(x.abs().max())  # <-
            return self.l(x / scale)
""")  # fmt: skip
fault("host-sync", "forward if >", """
    import torch
    from torch import nn
    class Clamp(nn.Module):
        def forward(self, x):
            h = self.f(x)
            if h.abs().max() > 1e4:  # <-
                h = h.clamp(-1e4, 1e4)
            return h
""")  # fmt: skip
fault("host-sync", "forward python loop over tensor", """
    import torch
    from torch import nn
    class Pool(nn.Module):
        def forward(self, x, lengths):
            outs = []
            for i, n in enumerate(lengths.tolist()):  # <-
                outs.append(x[i, :n].mean(0))
            return torch.stack(outs)
""")  # fmt: skip
fault("host-sync", "gan two losses", """
    import torch
    def main(gen, disc, og, od, loader, bce):
        for step, real in enumerate(loader):
            real = real.cuda()
            fake = gen(torch.randn(real.size(0), 64, device="cuda"))
            d = bce(disc(real), torch.ones(1, device="cuda")) + bce(disc(fake.detach()), torch.zeros(1, device="cuda"))
            od.zero_grad(); d.backward(); od.step()
            g = bce(disc(fake), torch.ones(1, device="cuda"))
            og.zero_grad(); g.backward(); og.step()
            print("D", d.item(), "G", g.item())  # <-
""")  # fmt: skip
fault("host-sync", "return item from step fn", """
    import torch
    class Trainer:
        def train_batch(self, batch):
            loss = self.model(batch["x"].to(self.device))
            self.scaler.scale(loss).backward()
            self.scaler.step(self.opt)
            self.scaler.update()
            return loss.item()  # <-
        def fit(self):
            for batch in self.loader:
                l = self.train_batch(batch)
                self.losses.append(l)
""")  # fmt: skip
fault("host-sync", "log every=1", """
    import torch
    LOG_EVERY = 1
    def main(model, opt, loader):
        for i, (x, y) in enumerate(loader):
            loss = model(x.cuda(), y.cuda())
            loss.backward(); opt.step(); opt.zero_grad()
            if i % LOG_EVERY == 0:
                print(loss.item())  # <-
""")  # fmt: skip
fault("host-sync", "reduce and item", """
    import torch, torch.distributed as dist
    def main(model, opt, loader, rank):
        for i, (x, y) in enumerate(loader):
            loss = model(x.cuda(), y.cuda())
            loss.backward(); opt.step(); opt.zero_grad()
            t = loss.detach().clone()
            dist.all_reduce(t)
            mean = (t / dist.get_world_size()).item()  # <-
            if rank == 0 and i % 100 == 0:
                print(mean)
""")  # fmt: skip
fault("host-sync", "scaler scale", """
    import torch
    def main(model, opt, loader, scaler, sched):
        for x, y in loader:
            with torch.autocast("cuda"):
                loss = model(x.cuda(), y.cuda())
            scaler.scale(loss).backward()
            before = scaler.get_scale()  # <-
            scaler.step(opt)
            scaler.update()
            if scaler.get_scale() >= before:
                sched.step()
            opt.zero_grad()
""")  # fmt: skip
right("host-sync", "periodic", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % 50 == 0:
                print(loss.item())
""")  # fmt: skip
right("host-sync", "accumulated on device", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        total = torch.zeros((), device=device)
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            total += loss.detach()
""")  # fmt: skip
right("host-sync", "read at the end of every 100", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        buf = []
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            buf.append(loss.detach())
            if len(buf) == 100:
                print(torch.stack(buf).mean().item())
                buf.clear()
""")  # fmt: skip
right("host-sync", "len of batch", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        n = 0
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            n += x.size(0)
            log.count(int(n))
""")  # fmt: skip
right("host-sync", "lr is number", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            print(float(opt.param_groups[0]['lr']))
""")  # fmt: skip
right("host-sync", "log interval", """
    import torch, math, numpy as np
    def train(model, opt, loader, device, log, writer, bar):
        for step, (x, y) in enumerate(loader):
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if log.due(step):
                log.write(loss)
""")  # fmt: skip
right("host-sync", "eval", """
    import torch
    def evaluate(model, loader, device):
        total = 0.0
        with torch.no_grad():
            for x, y in loader:
                total += model(x.to(device), y.to(device))
        return total.item()
""")  # fmt: skip
right("host-sync", "forward int of python", """
    import torch
    from torch import nn
    class B(nn.Module):
        def forward(self, x, n=None):
            k = int(self.ratio * x.size(1))
            if n is not None and n > 3:
                k = min(k, n)
            return x[:, :k]
""")  # fmt: skip
right("host-sync", "forward shape check", """
    import torch
    from torch import nn
    class B(nn.Module):
        def forward(self, x, mask=None):
            if x.shape[1] > self.limit:
                x = x[:, -self.limit:]
            if mask is not None:
                x = x * mask
            if self.training and self.p > 0:
                x = self.drop(x)
            return x
""")  # fmt: skip
# --- recast ----------------------------------------------------------------------------------------------------------
fault("recast", "forward loss float", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class GPT(nn.Module):
        def forward(self, ids, targets=None):
            x = self.body(ids)
            logits = self.lm_head(x)
            logits = logits.float()  # <-
            if targets is None:
                return logits
            return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
""")  # fmt: skip
fault("recast", "hf shift", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def compute_loss(outputs, labels):
        logits = outputs.logits.to(torch.float32)  # <-
        shift = logits[..., :-1, :].contiguous()
        return F.cross_entropy(shift.view(-1, shift.size(-1)), labels[..., 1:].reshape(-1))
""")  # fmt: skip
fault("recast", "inline", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def step(model, x, y):
        out = model(x)
        return F.cross_entropy(out.view(-1, out.size(-1)).float(), y.view(-1))  # <-
""")  # fmt: skip
fault("recast", "type", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def nll(model, x, y):
        lg = model(x).type(torch.float32)  # <-
        lp = lg.log_softmax(-1)
        return -lp.gather(-1, y[..., None]).mean()
""")  # fmt: skip
fault("recast", "double", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def loss_fn(logits, y):
        return F.cross_entropy(logits.double().flatten(0, 1), y.flatten())  # <-
    def train(model, opt, loader):
        for x, y in loader:
            loss = loss_fn(model(x), y)
            loss.backward(); opt.step()
""")  # fmt: skip
fault("recast", "softmax dtype", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def kl(student_logits, teacher_logits):
        p = F.softmax(teacher_logits, dim=-1, dtype=torch.float32)
        q = F.log_softmax(student_logits, dim=-1, dtype=torch.float32)  # <-
        return F.kl_div(q, p, reduction="batchmean")
""")  # fmt: skip
fault("recast", "kwarg input", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def step(net, x, y):
        scores = net(x)
        return F.cross_entropy(input=scores.to(torch.float).transpose(1, 2), target=y)  # <-
""")  # fmt: skip
fault("recast", "criterion", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class T:
        def __init__(self, net):
            self.net, self.loss = net, nn.CrossEntropyLoss()
        def one(self, x, y):
            pred = self.net(x)
            return self.loss(pred.float().flatten(0, 1), y.flatten())  # <-
""")  # fmt: skip
fault("recast", "upcast helper", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def up(t):
        return t.float()  # <-
    def loss(model, x, y):
        logits = up(model(x))
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
""")  # fmt: skip
fault("recast", "dpo logps", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def logps(model, ids, labels):
        logits = model(ids).logits
        lp = torch.log_softmax(logits.float(), -1)  # <-
        return lp.gather(2, labels.unsqueeze(2)).squeeze(2).sum(1)
""")  # fmt: skip
fault("recast", "torch.float alias", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    f32 = torch.float32
    def loss(model, x, y):
        logits = model(x)
        return F.cross_entropy(logits.to(f32).flatten(0, 1), y.flatten())  # <-
""")  # fmt: skip
fault("recast", "weight linear", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Lin(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight.to(x.dtype), self.bias)  # <-
""")  # fmt: skip
fault("recast", "weight type as", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Lin(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.w = nn.Parameter(torch.empty(o, i))
        def forward(self, x):
            w = self.w.type_as(x)  # <-
            return x @ w.t()
""")  # fmt: skip
fault("recast", "tied head", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class LM(nn.Module):
        def forward(self, ids):
            h = self.blocks(self.wte(ids))
            return torch.einsum("btd,vd->btv", h, self.wte.weight.to(h.dtype))  # <-
""")  # fmt: skip
fault("recast", "head float", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class LM(nn.Module):
        def forward(self, h):
            with torch.autocast("cuda", enabled=False):
                return F.linear(h.float(), self.lm_head.weight.float())  # <-
""")  # fmt: skip
fault("recast", "matmul fn", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Dense(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(i, o))
            self.bias = nn.Parameter(torch.zeros(o))
        def forward(self, x):
            k = self.kernel.to(dtype=torch.bfloat16)  # <-
            return torch.addmm(self.bias.to(torch.bfloat16), x, k)
""")  # fmt: skip
fault("recast", "mlp several weights", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class MLP(nn.Module):
        def forward(self, x):
            dt = x.dtype
            g = F.silu(x @ self.gate.to(dt))  # <-
            return (g * (x @ self.up.to(dt))) @ self.down.to(dt)
        def __init__(self, d, h):
            super().__init__()
            self.gate = nn.Parameter(torch.randn(d, h))
            self.up = nn.Parameter(torch.randn(d, h))
            self.down = nn.Parameter(torch.randn(h, d))
""")  # fmt: skip
fault("recast", "model half in loop", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def train(model, opt, loader):
        for x, y in loader:
            model.half()  # <-
            loss = model(x, y)
            loss.backward()
            model.float()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("recast", "params dict per step", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    from torch.func import functional_call
    def train(model, opt, loader):
        for x, y in loader:
            low = {k: v.to(torch.bfloat16) for k, v in model.named_parameters()}  # <-
            loss = functional_call(model, low, (x, y))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("recast", "generate half each", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    @torch.no_grad()
    def generate(model, ids, n):
        for _ in range(n):
            logits = model.to(torch.bfloat16)(ids)[:, -1]  # <-
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        return ids
""")  # fmt: skip
fault("recast", "autocast cache off", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def train(model, opt, loader):
        for x, y in loader:
            with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):  # <-
                loss = model(x, y)
            loss.backward()
            opt.step()
""")  # fmt: skip
fault("recast", "cast helper module", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def cast(t, x):
        return t.to(x.dtype)
    class Lin(nn.Linear):
        def forward(self, x):
            return F.linear(x, cast(self.weight, x))  # <-
""")  # fmt: skip
fault("recast", "property weight", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Lin(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.master = nn.Parameter(torch.randn(o, i))
        @property
        def w16(self):
            return self.master.to(torch.bfloat16)  # <-
        def forward(self, x):
            return F.linear(x, self.w16)
""")  # fmt: skip
fault("recast", "embedding weight cast", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Emb(nn.Module):
        def forward(self, ids):
            return F.embedding(ids, self.table.weight.half())  # <-
""")  # fmt: skip
fault("recast", "state dict deepcopy half every step", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    import copy
    def train(model, ema, opt, loader):
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            sd = {k: v.float() for k, v in model.state_dict().items()}  # <-
            ema.update(sd)
""")  # fmt: skip
fault("recast", "loop over layers cast in decode", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def decode(layers, head, x, n):
        outs = []
        for _ in range(n):
            for w1, w2 in layers:
                x = x + F.gelu(x @ w1.to(x.dtype)) @ w2.to(x.dtype)
            logits = x @ head.to(x.dtype)  # <-
            tok = logits[:, -1].argmax(-1)
            outs.append(tok)
            x = embed(tok)
        return outs
""")  # fmt: skip
fault("recast", "logits from module returned float", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Head(nn.Module):
        def forward(self, h, labels):
            logits = self.proj(h).float()  # <-
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
            return loss, logits
""")  # fmt: skip
right("recast", "last token", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def sample(model, ids):
        logits = model(ids)[:, -1].float()
        return torch.multinomial(logits.softmax(-1), 1)
""")  # fmt: skip
right("recast", "norm", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Norm(nn.Module):
        def forward(self, x):
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return (y * self.weight.float()).to(x.dtype)
""")  # fmt: skip
right("recast", "init once", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def load(path):
        model = build()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.half().eval()
""")  # fmt: skip
right("recast", "chunked", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def loss(h, head, y):
        total = 0
        for hc, yc in zip(h.chunk(8), y.chunk(8)):
            total = total + F.cross_entropy(head(hc).float(), yc, reduction="sum")
        return total / y.numel()
""")  # fmt: skip
right("recast", "input cast", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Lin(nn.Linear):
        def forward(self, x):
            return F.linear(x.to(self.weight.dtype), self.weight)
""")  # fmt: skip
right("recast", "mse classification small", """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def step(net, x, y):
        return F.mse_loss(net(x), y.float())
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WAYS.variants])
def test_each_way_of_writing_a_fault_of_steps_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
