"""Faults of generation as different people write them: servers, rollouts, beams, tool loops, pools of workers."""

from tests.optimise.scan.variants import Collection

STYLES = Collection()
fault, right = STYLES.fault, STYLES.right

# --- copied-token -----------------------------------------------------------------------------------------------------
fault("copied-token", "appended to every row in a loop", """
    import torch
    def begin(model, prompt, n):
        probs = torch.softmax(model(prompt)[:, -1], -1)
        first = torch.multinomial(probs, 1)
        rows = [list(prompt) for _ in range(n)]
        for row in rows:
            row.append(first.item())  # <-
        return rows
""")  # fmt: skip
fault("copied-token", "a prompt with its first token, once per row", """
    import torch
    def begin(model, prompt, n):
        first = torch.multinomial(torch.softmax(model(prompt)[0, -1], -1), 1).item()
        return [[*prompt, first] for _ in range(n)]  # <-
""")  # fmt: skip
fault("copied-token", "broadcast by a function", """
    import torch
    def begin(logits, n):
        tok = torch.distributions.Categorical(logits=logits[-1]).sample()
        return torch.broadcast_to(tok, (n, 1))  # <-
""")  # fmt: skip
fault("copied-token", "a column set to one number", """
    import torch
    def begin(model, ids, n, width):
        out = torch.zeros(n, width, dtype=torch.long)
        tok = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
        out[:, 0] = tok.item()  # <-
        return out
""")  # fmt: skip
fault("copied-token", "ones times a token", """
    import torch
    def begin(model, ids, n):
        tok = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
        return torch.ones(n, 1, dtype=torch.long) * tok  # <-
""")  # fmt: skip
fault("copied-token", "a whole sampled answer", """
    def group(model, ids, n):
        out = model.generate(ids, do_sample=True, max_new_tokens=64)
        return out.repeat(n, 1)  # <-
""")  # fmt: skip
fault("copied-token", "one dict entry for every row", """
    import torch
    class Rollout:
        def start(self, prompt, names):
            logits = self.policy(prompt)[:, -1]
            tok = torch.multinomial(logits.softmax(-1), 1).item()
            self.last = dict.fromkeys(names, tok)  # <-
""")  # fmt: skip
fault("copied-token", "a prompt plus its first token, times n", """
    import torch
    def begin(model, prompt, n):
        tok = int(torch.multinomial(model(prompt)[0, -1].softmax(-1), 1))
        return [prompt + [tok]] * n  # <-
""")  # fmt: skip
fault("copied-token", "written into each row's place", """
    import torch
    def begin(model, ids, batch, pos):
        tok = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
        for i in range(batch.size(0)):
            batch[i, pos] = tok  # <-
        return batch
""")  # fmt: skip
right("copied-token", "each row draws", """
    import torch
    def begin(model, prompt, n):
        probs = torch.softmax(model(prompt)[:, -1], -1).expand(n, -1)
        first = torch.multinomial(probs, 1)
        rows = [list(prompt) for _ in range(n)]
        for row, tok in zip(rows, first.tolist()):
            row.extend(tok)
        return rows
""")  # fmt: skip
right("copied-token", "tokens of one text", """
    import torch
    def write(model, ids, n):
        out = []
        for _ in range(n):
            tok = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
            out.append(tok.item())
        return out
""")  # fmt: skip

# --- rng --------------------------------------------------------------------------------------------------------------
fault("rng", "a server's dice are set back when somebody joins", """
    import torch
    class Batcher:
        def __init__(self):
            self.gen = torch.Generator()
            self.rows = []
        def join(self, request):
            self.gen.manual_seed(request.seed)  # <-
            self.rows.append(request)
        def step(self):
            probs = self.model([r.ids for r in self.rows]).softmax(-1)
            return torch.multinomial(probs, 1, generator=self.gen)
""")  # fmt: skip
fault("rng", "masks that are the same on every rank", """
    import torch
    class Spans:
        def __init__(self, rank, rate):
            self.rank, self.rate = rank, rate
            self.g = torch.Generator().manual_seed(7)  # <-
        def __call__(self, ids):
            return torch.rand(ids.shape, generator=self.g) < self.rate
""")  # fmt: skip
fault("rng", "samples of one prompt, each from the same seed", """
    import torch
    def sample(model, ids, n, seed):
        g = torch.Generator().manual_seed(seed)  # <-
        for _ in range(n):
            ids = torch.cat([ids, torch.multinomial(model(ids)[:, -1].softmax(-1), 1, generator=g)], 1)
        return ids
    def best_of(model, ids, k, seed):
        return [sample(model, ids, 64, seed) for _ in range(k)]
""")  # fmt: skip
fault("rng", "every process of a pool begins alike", """
    import random
    from multiprocessing import Pool
    def make(number):
        random.seed(1234)  # <-
        return [random.random() for _ in range(1000)]
    def main():
        with Pool(8) as pool:
            return pool.map(make, range(8))
""")  # fmt: skip
fault("rng", "one order for all epochs", """
    import random
    class Shuffled:
        def __init__(self, rows, seed=0):
            self.rows, self.seed = rows, seed
        def __iter__(self):
            order = list(range(len(self.rows)))
            random.Random(self.seed).shuffle(order)  # <-
            for i in order:
                yield self.rows[i]
    def train(model, opt, rows):
        data = Shuffled(rows)
        for epoch in range(3):
            for row in data:
                model(row).backward()
                opt.step()
""")  # fmt: skip
fault("rng", "numpy's stream for a batch of prompts", """
    import numpy as np
    class Sampler:
        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)  # <-
        def draw(self, probs, batch_size):
            return [self.rng.choice(len(p), p=p) for p in probs[:batch_size]]
""")  # fmt: skip
fault("rng", "dropout seeded in a training step", """
    import torch
    def one_step(model, opt, batch):
        torch.manual_seed(42)  # <-
        loss = model(batch)
        loss.backward()
        opt.step()
        opt.zero_grad()
    def train(model, opt, loader):
        for batch in loader:
            one_step(model, opt, batch)
""")  # fmt: skip
fault("rng", "a sampler with the rank in its seed", """
    from torch.utils.data import DistributedSampler
    def sampler(data, rank, world, seed):
        return DistributedSampler(data, world, rank, shuffle=True, seed=seed + rank)  # <-
""")  # fmt: skip
fault("rng", "files shuffled by rank, then cut by rank", """
    import random
    def files_of(files, rank, world):
        rng = random.Random(rank)  # <-
        files = list(files)
        rng.shuffle(files)
        return files[rank::world]
""")  # fmt: skip
right("rng", "a generator per request", """
    import torch
    class Batcher:
        def join(self, request):
            request.gen = torch.Generator()
            request.gen.manual_seed(request.seed)
            self.rows.append(request)
        def step(self):
            probs = self.model([r.ids for r in self.rows]).softmax(-1)
            return [torch.multinomial(p, 1, generator=r.gen) for p, r in zip(probs, self.rows)]
""")  # fmt: skip
right("rng", "the epoch is part of the seed", """
    import random
    class Shuffled:
        def set_epoch(self, epoch):
            self.epoch = epoch
        def __iter__(self):
            order = list(range(len(self.rows)))
            random.Random(self.seed + self.epoch).shuffle(order)
            return iter([self.rows[i] for i in order])
""")  # fmt: skip
right("rng", "one permutation, cut by rank", """
    import torch
    def order(n, rank, world):
        g = torch.Generator()
        g.manual_seed(0)
        return torch.randperm(n, generator=g)[rank::world]
""")  # fmt: skip

# --- no-kv-cache ------------------------------------------------------------------------------------------------------
fault("no-kv-cache", "rows one by one at every position", """
    import torch
    @torch.no_grad()
    def write(model, seqs, n):
        for _ in range(n):
            for i in range(len(seqs)):
                logits = model(torch.tensor([seqs[i]]))  # <-
                seqs[i].append(int(logits[0, -1].argmax()))
        return seqs
""")  # fmt: skip
fault("no-kv-cache", "a beam search over whole texts", """
    import torch
    @torch.no_grad()
    def beam(model, ids, width, n):
        beams = [(0.0, ids)]
        for _ in range(n):
            found = []
            for score, seq in beams:
                logp = model(seq)[:, -1].log_softmax(-1)  # <-
                top, tok = logp.topk(width)
                for s, t in zip(top[0], tok[0]):
                    found.append((score + s.item(), torch.cat([seq, t.view(1, 1)], 1)))
            beams = sorted(found, key=lambda b: -b[0])[:width]
        return beams[0][1]
""")  # fmt: skip
fault("no-kv-cache", "a buffer that goes in as a whole", """
    import torch
    @torch.no_grad()
    def fill(model, ids, n):
        t = ids.size(1)
        buf = torch.zeros(ids.size(0), t + n, dtype=torch.long)
        buf[:, :t] = ids
        for at in range(t, t + n):
            logits = model(buf)[:, at - 1]  # <-
            buf[:, at] = logits.argmax(-1)
        return buf
""")  # fmt: skip
fault("no-kv-cache", "the cache is switched off in the settings", """
    from transformers import GenerationConfig
    def answer(model, ids):
        settings = GenerationConfig(max_new_tokens=256, use_cache=False)  # <-
        return model.generate(ids, generation_config=settings)
""")  # fmt: skip
fault("no-kv-cache", "decoder over all targets so far", """
    import torch
    def translate(model, memory, start, n):
        ys = torch.full((1, 1), start)
        for _ in range(n):
            out = model.decode(memory, ys)  # <-
            nxt = out[:, -1].argmax(-1)
            ys = torch.cat([ys, nxt[:, None]], 1)
        return ys
""")  # fmt: skip
fault("no-kv-cache", "a stream of tokens from a generator", """
    import torch
    class Bot:
        @torch.inference_mode()
        def stream(self, text):
            tokens = self.tok.encode(text)
            while True:
                window = tokens[-self.block:]
                out = self.net(torch.tensor(window)[None])  # <-
                nxt = torch.distributions.Categorical(logits=out[0, -1]).sample().item()
                if nxt == self.tok.eos:
                    return
                tokens.append(nxt)
                yield self.tok.decode([nxt])
""")  # fmt: skip
fault("no-kv-cache", "use_cache asked for and thrown away", """
    import torch
    def write(model, ids, n):
        for _ in range(n):
            out = model(input_ids=ids, use_cache=True)  # <-
            ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=-1)
        return ids
""")  # fmt: skip
right("no-kv-cache", "only what is new goes in, by rows", """
    import torch
    @torch.no_grad()
    def write(model, seqs, caches, n):
        for _ in range(n):
            for i in range(len(seqs)):
                logits = model(torch.tensor([[seqs[i][-1]]]), cache=caches[i])
                seqs[i].append(int(logits[0, -1].argmax()))
        return seqs
""")  # fmt: skip

# --- cache-overflow ---------------------------------------------------------------------------------------------------
fault("cache-overflow", "the oldest keys fall out without a word", """
    import torch
    class KVCache:
        def update(self, k, v):
            self.k = torch.cat([self.k, k], dim=2)[:, :, -self.max_len:]  # <-
            self.v = torch.cat([self.v, v], dim=2)[:, :, -self.max_len:]
            return self.k, self.v
""")  # fmt: skip
fault("cache-overflow", "llama's slice without a look at its end", """
    import torch
    from torch import nn
    class Attention(nn.Module):
        def forward(self, x, start_pos):
            b, t, _ = x.shape
            xk, xv = self.wk(x), self.wv(x)
            self.cache_k[:b, start_pos : start_pos + t] = xk  # <-
            self.cache_v[:b, start_pos : start_pos + t] = xv
            return xk, xv
""")  # fmt: skip
fault("cache-overflow", "no free page means the last one again", """
    class Pages:
        def page_for(self, row):
            if not self.free:
                return self.table[row][-1]
            page = self.free.pop()
            self.table[row].append(page)
            return page
        def write(self, row, pos, k):
            page = self.page_for(row) if pos % self.size == 0 else self.table[row][-1]
            slot = min(pos, self.capacity - 1)  # <-
            self.kv_cache[page, slot] = k
""")  # fmt: skip
fault("cache-overflow", "written modulo its size", """
    class Cache:
        def put(self, pos, k, v):
            at = pos % self.k_cache.size(1)
            self.k_cache[:, at] = k  # <-
            self.v_cache[:, at] = v
""")  # fmt: skip
fault("cache-overflow", "where() keeps what fits", """
    import torch
    class Cache:
        def put(self, pos, k):
            ok = pos < self.k_cache.shape[1]
            self.k_cache[:, pos[ok]] = k[:, ok]  # <-
""")  # fmt: skip
fault("cache-overflow", "shortened where it is full", """
    class KVCache:
        def put(self, k, v):
            n = k.shape[2]
            if self.pos + n > self.max_len:
                n = self.max_len - self.pos
            self.k[:, :, self.pos : self.pos + n] = k[:, :, :n]  # <-
            self.v[:, :, self.pos : self.pos + n] = v[:, :, :n]
            self.pos += n
""")  # fmt: skip
fault("cache-overflow", "the error is suppressed", """
    import contextlib
    class KVCache:
        def put(self, pos, k):
            with contextlib.suppress(IndexError):
                self.k_cache[:, pos] = k  # <-
""")  # fmt: skip
right("cache-overflow", "a window that says so", """
    import torch
    class SlidingWindowCache:
        def update(self, k, v):
            self.k = torch.cat([self.k, k], dim=2)[:, :, -self.window:]
            self.v = torch.cat([self.v, v], dim=2)[:, :, -self.window:]
            return self.k, self.v
""")  # fmt: skip

# --- eval-output ------------------------------------------------------------------------------------------------------
fault("eval-output", "blocks joined into a program", """
    import re
    def reward(completion, tests):
        blocks = re.findall(r"```python(.*?)```", completion, re.S)
        program = "\\n".join([*blocks, tests])
        exec(program, {})  # <-
        return 1.0
""")  # fmt: skip
fault("eval-output", "written to a file and started", """
    import subprocess, sys, tempfile
    def run(model_reply):
        with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as f:
            f.write(model_reply)
        return subprocess.run([sys.executable, f.name], capture_output=True)  # <-
""")  # fmt: skip
fault("eval-output", "an answer of a client's chat", """
    def solve(client, question):
        msg = client.chat.completions.create(model="m", messages=[{"role": "user", "content": question}])
        code = msg.choices[0].message.content
        scope = {}
        exec(code, scope)  # <-
        return scope["answer"]
""")  # fmt: skip
fault("eval-output", "SQL as the model says", """
    def ask(llm, cursor, question):
        sql = llm.invoke(f"Write SQL for: {question}")
        cursor.execute(sql)  # <-
        return cursor.fetchall()
""")  # fmt: skip
fault("eval-output", "arguments of a tool call", """
    import json
    def call_tool(assistant_message):
        call = json.loads(assistant_message)
        return eval(call["expression"])  # <-
""")  # fmt: skip
fault("eval-output", "handed to a pool with exec", """
    from concurrent.futures import ProcessPoolExecutor
    def check(tokenizer, ids):
        text = tokenizer.decode(ids)
        with ProcessPoolExecutor() as pool:
            return pool.submit(exec, text).result()  # <-
""")  # fmt: skip
right("eval-output", "a fixed query with the text as a value", """
    def save(cursor, completion):
        cursor.execute("insert into log values (?)", (completion,))
""")  # fmt: skip
right("eval-output", "a config of the person", """
    import sys
    for arg in sys.argv[1:]:
        key, value = arg.split("=")
        globals()[key] = eval(value)
""")  # fmt: skip
