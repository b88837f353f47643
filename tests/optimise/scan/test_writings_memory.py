"""How different hands write faults of memory and modes: full caches, copies beside work, modes of models."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WRITINGS = Collection()
fault, right = WRITINGS.fault, WRITINGS.right

# --- cache-overflow ---------------------------------------------------------------------------------------------------
fault("cache-overflow", "rotary position cut", """
    import torch
    class SelfAttention:
        def forward(self, x, cache, offset):
            q, k, v = self.qkv(x).chunk(3, -1)
            offset = min(offset, cache.max_len - x.size(1))  # <-
            cache.k[:, :, offset:offset + x.size(1)] = k
            cache.v[:, :, offset:offset + x.size(1)] = v
            return attend(q, cache.k, cache.v)
""")  # fmt: skip
fault("cache-overflow", "warning-less truncate of the messages", """
    def build(tok, messages, n_ctx, reserve):
        ids = tok.apply_chat_template(messages)
        if len(ids) > n_ctx - reserve:
            ids = ids[-(n_ctx - reserve):]  # <-
        return ids
    def chat(llm, tok, messages):
        return llm.generate(build(tok, messages, 4096, 512))
""")  # fmt: skip
fault("cache-overflow", "slots full, sample dropped", """
    class KVSlots:
        def add(self, seq, k, v):
            slot = self.find_free()
            if slot is None:
                return  # <-
            self.k_cache[slot, : k.size(0)] = k
            self.v_cache[slot, : v.size(0)] = v
""")  # fmt: skip
fault("cache-overflow", "index clipped with numpy", """
    import numpy as np
    class Cache:
        def write(self, k, pos):
            pos = np.clip(pos, 0, self.max_len - 1)  # <-
            self.k_buf[:, pos] = k
""")  # fmt: skip
fault("cache-overflow", "continue in loop", """
    class CacheWriter:
        def write(self, tokens, k, v):
            for i, p in enumerate(tokens):
                if p >= self.capacity:
                    continue  # <-
                self.k_cache[:, p] = k[i]
                self.v_cache[:, p] = v[i]
""")  # fmt: skip
fault("cache-overflow", "prompt tokens sliced on the request", """
    class Server:
        def handle(self, req):
            toks = self.tokenizer.encode(req.prompt)[: self.cfg.max_input]  # <-
            return self.engine.generate(toks, req.max_new)
""")  # fmt: skip
fault("cache-overflow", "two statements", """
    import torch
    class LayerKV:
        def __init__(self, limit):
            self.limit, self.k, self.v = limit, None, None
        def update(self, k, v):
            self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
            self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
            self.k = self.k[:, :, -self.limit:]  # <-
            self.v = self.v[:, :, -self.limit:]
            return self.k, self.v
""")  # fmt: skip
fault("cache-overflow", "another text's page is taken", """
    class Pages:
        def grow(self, name):
            table = self.tables.setdefault(name, [])
            if not self.free:
                oldest = next(iter(self.tables))  # <-
                self.free.append(self.tables[oldest].pop(0))
            table.append(self.free.pop())
""")  # fmt: skip
fault("cache-overflow", "tokenizer truncates prompt", """
    def answer(model, tokenizer, prompt, limit):
        ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=limit)  # <-
        return tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0])
""")  # fmt: skip
fault("cache-overflow", "narrow copy", """
    class KVCache:
        def update(self, start, k):
            room = self.k.size(2) - start
            self.k.narrow(2, start, min(room, k.size(2))).copy_(k[:, :, :room])  # <-
""")  # fmt: skip
right("cache-overflow", "training rows cut", """
    def rows(tok, texts, n):
        return [tok.encode(t)[:n] for t in texts]
""")  # fmt: skip
right("cache-overflow", "cache view of the used part", """
    class KVCache:
        def view(self, n):
            return self.k[:, :, :n], self.v[:, :, :n]
""")  # fmt: skip
right("cache-overflow", "sliding window", """
    class SlidingWindowCache:
        def update(self, step, k):
            self.k[:, :, step % self.window] = k
""")  # fmt: skip
# --- async-copy -------------------------------------------------------------------------------------------------------
fault("async-copy", "batches from a generator of tensors", """
    import torch
    def batches(tokens, B, T):
        for i in range(0, len(tokens) - B * T, B * T):
            yield torch.tensor(tokens[i:i + B * T]).view(B, T)
    def train(model, tokens, device):
        for x in batches(tokens, 8, 128):
            x = x.to(device, non_blocking=True)  # <-
            model(x)
""")  # fmt: skip
fault("async-copy", "device mover class", """
    from torch.utils.data import DataLoader
    class Mover:
        def __init__(self, device):
            self.device = device
        def __call__(self, batch):
            return {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}  # <-
    def fit(model, rows, device):
        move = Mover(device)
        for batch in DataLoader(rows, batch_size=16, shuffle=True):
            model(**move(batch))
""")  # fmt: skip
fault("async-copy", "metric read early", """
    import torch
    class Log:
        def push(self, name, t):
            self.rows[name] = t.detach().to("cpu", non_blocking=True)  # <-
        def flush(self):
            for name, v in self.rows.items():
                print(name, float(v))
""")  # fmt: skip
fault("async-copy", "offload of the optimizer", """
    import torch
    def offload(opt):
        for st in opt.state.values():
            buf = torch.empty_like(st["exp_avg"], device="cpu", pin_memory=True)
            buf.copy_(st["exp_avg"], non_blocking=True)  # <-
            st["exp_avg"] = buf
            print(buf.norm().item())
""")  # fmt: skip
fault("async-copy", "one host buffer in generation", """
    import torch
    class Decoder:
        def __init__(self, B):
            self.h = torch.zeros(B, 1, dtype=torch.long).pin_memory()
        def loop(self, model, toks, n):
            for t in range(n):
                self.h[:, 0] = torch.as_tensor([r[t] for r in toks])
                x = self.h.to("cuda", non_blocking=True)  # <-
                model(x)
""")  # fmt: skip
fault("async-copy", "yielded before it is there", """
    import torch
    class Ahead:
        def __init__(self, loader):
            self.loader, self.side = loader, torch.cuda.Stream()
        def take(self, rows):
            x = next(rows, None)
            if x is None:
                return None
            with torch.cuda.stream(self.side):
                x = x.to("cuda", non_blocking=True)
            return x



        def __iter__(self):
            rows = iter(self.loader)
            x = self.take(rows)
            while x is not None:
                following = self.take(rows)
                yield x  # <-
                x = following
""")  # fmt: skip
fault("async-copy", "loader of another function", """
    from torch.utils.data import DataLoader
    def make(rows):
        return DataLoader(rows, batch_size=8, num_workers=2)
    def batches(loader, device):
        for x, y in loader:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "tokenizer output", """
    def embed(tokenizer, model, texts):
        enc = tokenizer(texts, return_tensors="pt", padding=True)
        enc = enc.to("cuda", non_blocking=True)  # <-
        return model(**enc)
""")  # fmt: skip
fault("async-copy", "randn", """
    import torch
    def noise(n):
        x = torch.randn(n, 16)
        return x.to("cuda", non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "pad_sequence", """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    def put(rows, device):
        x = pad_sequence([torch.as_tensor(r) for r in rows], batch_first=True)
        return x.to(device, non_blocking=True)  # <-
""")  # fmt: skip
right("async-copy", "pinned fresh each time", """
    import torch
    def send(rows):
        return torch.tensor(rows).pin_memory().to("cuda", non_blocking=True)
""")  # fmt: skip
right("async-copy", "lightning module moves", """
    import lightning as L
    class Lit(L.LightningModule):
        def transfer_batch_to_device(self, batch, device, i):
            return batch.to(device)
""")  # fmt: skip
right("async-copy", "loader pins", """
    from torch.utils.data import DataLoader
    def train(ds, model):
        for x in DataLoader(ds, batch_size=8, pin_memory=True):
            model(x.to("cuda", non_blocking=True))
""")  # fmt: skip
# --- eval-mode --------------------------------------------------------------------------------------------------------
fault("eval-mode", "gan style metric", """
    import torch
    def fid_features(inception, loader):
        feats = []
        inception.eval()
        for img in loader:
            f = inception(img.cuda())  # <-
            feats.append(f.cpu().numpy())
        return feats
""")  # fmt: skip
fault("eval-mode", "evaluator object with run method", """
    class Evaluator:
        def __init__(self, model, loader, metric):
            self.model, self.loader, self.metric = model, loader, metric
        def run(self):
            self.model.eval()
            for x, y in self.loader:
                self.metric.update(self.model(x), y)  # <-
            return self.metric.compute()
""")  # fmt: skip
fault("eval-mode", "trainer evaluates in the middle without train", """
    import torch
    class Trainer:
        def evaluate(self):
            self.net.eval()  # <-
            with torch.no_grad():
                return sum(self.loss(self.net(x), y).item() for x, y in self.val)
        def train(self):
            self.net.train()
            for i, (x, y) in enumerate(self.rows):
                loss = self.loss(self.net(x), y)
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
                if i % 200 == 0:
                    self.log(self.evaluate())
""")  # fmt: skip
fault("eval-mode", "inference worker", """
    import torch
    from lib.net import Detector
    class Worker:
        def __init__(self, ckpt):
            self.model = Detector(num_classes=80)
            state = torch.load(ckpt, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])  # <-
            self.model.cuda()
        def __call__(self, img):
            with torch.inference_mode():
                return self.model(img.cuda()).sigmoid().cpu()
""")  # fmt: skip
fault("eval-mode", "teacher in train mode too", """
    import torch
    def kd(student, teacher, rows, opt, crit):
        student.train()
        teacher.train()
        for x in rows:
            with torch.no_grad():
                t = teacher(x)  # <-
            loss = crit(student(x), t)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("eval-mode", "generation in the loop with gradients", """
    import torch
    def preview(model, ids, n):
        for _ in range(n):
            logits = model(ids)[:, -1]  # <-
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        return ids
    def train(model, rows, opt, prompt):
        for step, x in enumerate(rows):
            loss = model(x).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % 100 == 0:
                print(preview(model, prompt, 16))
""")  # fmt: skip
fault("eval-mode", "scores of the reference by a helper", """
    def logp(model, ids):
        return model(ids).logits.log_softmax(-1)
    class PPO:
        def note(self, ids):
            ref = logp(self.ref, ids)  # <-
            return ref
        def learn(self, batches):
            for ids in batches:
                ref = self.note(ids)
                loss = (logp(self.policy, ids) - ref).mean()
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
""")  # fmt: skip
fault("eval-mode", "put into training mode to answer", """
    import torch
    from transformers import AutoModelForCausalLM
    def load(path):
        net = AutoModelForCausalLM.from_pretrained(path)
        net.train()  # <-
        return net
    @torch.no_grad()
    def complete(net, ids):
        return net.generate(ids)
""")  # fmt: skip
fault("eval-mode", "trace in train mode", """
    import torch
    def export(path, model_cls):
        model = model_cls(dropout=0.1)
        model.load_state_dict(torch.load(path, weights_only=True))
        ts = torch.jit.trace(model, torch.zeros(1, 8, dtype=torch.long))  # <-
        ts.save("m.ts")
""")  # fmt: skip
fault("eval-mode", "reference model logps with graph", """
    def dpo(policy, ref_model, batch, opt, beta):
        for b in batch:
            pi = logps(policy(b))
            ref = logps(ref_model(b))  # <-
            loss = -(beta * (pi - ref)).sigmoid().log().mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("eval-mode", "a maker's name is no model", """
    import torch
    from mine import load_story_model
    MODEL = load_story_model("x")
    MODEL.eval()
    @torch.inference_mode()
    def answer(ids):
        return MODEL(ids).argmax(-1)
""")  # fmt: skip
right("eval-mode", "saliency wants gradients", """
    import torch
    def saliency(model, x):
        model.eval()
        x.requires_grad_(True)
        model(x).sum().backward()
        return x.grad
""")  # fmt: skip
right("eval-mode", "perceptual loss needs its graph", """
    def fit(gen, vgg, loader, opt):
        vgg.eval()
        for x in loader:
            loss = (vgg(gen(x)) - vgg(x)).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WRITINGS.variants])
def test_each_writing_of_a_fault_of_memory_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
