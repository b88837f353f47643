"""Faults between runs, requests and models, as different people write them; nothing is found in code that is right."""

import pytest
from tests.optimise.scan.variants import Collection

from intone.optimise.scan.run import scan_texts

STYLES = Collection()
fault, right = STYLES.fault, STYLES.right

# --- data-order: an order that nobody can ask for again ---------------------------------------------------------------
fault("data-order", "the clock seeds numpy's stream of the shards", """
    import time
    import numpy as np
    def shard_order(shards):
        rng = np.random.default_rng(time.time_ns())  # <-
        return [shards[i] for i in rng.permutation(len(shards))]
""")  # fmt: skip
fault("data-order", "a stream without a seed in a sampler", """
    import numpy as np
    from torch.utils.data import Sampler
    class Shuffled(Sampler):
        def __init__(self, n):
            self.n = n
            self.dice = np.random.default_rng()  # <-
        def __iter__(self):
            return iter(self.dice.permutation(self.n).tolist())
""")  # fmt: skip
fault("data-order", "Python's own stream set by the clock", """
    import random, time
    def epoch(files):
        random.seed(time.time())  # <-
        random.shuffle(files)
        for f in files:
            yield from open(f)
""")  # fmt: skip
fault("data-order", "a generator seeded by itself for a loader", """
    import torch
    from torch.utils.data import DataLoader
    def make_loader(dataset):
        g = torch.Generator()
        g.seed()  # <-
        return DataLoader(dataset, batch_size=64, shuffle=True, generator=g)
""")  # fmt: skip
fault("data-order", "the system's dice", """
    import random
    class Corpus:
        def __iter__(self):
            docs = list(self.docs)
            random.SystemRandom().shuffle(docs)  # <-
            yield from docs
""")  # fmt: skip
right("data-order", "a seed that is printed", """
    import random, time
    def epoch(files):
        seed = time.time_ns()
        print("seed", seed)
        order = random.Random(seed)
        order.shuffle(files)
        return files
""")  # fmt: skip
right("data-order", "a stream whose state is kept", """
    import os, random
    class Corpus:
        def __init__(self, docs):
            self.docs, self.dice = docs, random.Random(os.urandom(8))
        def __iter__(self):
            docs = list(self.docs)
            self.dice.shuffle(docs)
            yield from docs
        def state_dict(self):
            return {"dice": self.dice.getstate()}
""")  # fmt: skip
UNSEEDED = """
    === data.py
    import random
    def epochs(docs):
        while True:
            random.shuffle(docs)  # <-
            yield from docs
    === train.py
    import torch
    from data import epochs
    def main(model, opt, docs, path, steps):
        START
        batches = epochs(docs)
        for step in range(steps):
            loss = model(next(batches))
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % 500 == 0:
                torch.save(model.state_dict(), path)
"""
fault("data-order", "nobody seeds the shuffle, and checkpoints are kept", UNSEEDED.replace(
    "START", "model.load_state_dict(torch.load(path, weights_only=True))"))  # fmt: skip
fault("data-order", "the seed is another package's", UNSEEDED.replace("START", "torch.manual_seed(1)"))
right("data-order", "the shuffle's package is seeded", UNSEEDED.replace("  # <-", "").replace(
    "import torch\n", "import random\n    import torch\n").replace("START", "random.seed(1)"))  # fmt: skip
right("data-order", "a library seeds all packages", UNSEEDED.replace("  # <-", "").replace(
    "import torch\n", "import torch\n    from transformers import set_seed\n").replace(
    "START", "set_seed(1)"))  # fmt: skip
right("data-order", "nothing is kept", UNSEEDED.replace("  # <-", "").replace("START", "print(steps)").replace(
    "torch.save(model.state_dict(), path)", "print(loss)"))  # fmt: skip
right("data-order", "a part of the rows for a look", UNSEEDED.replace("  # <-", "").replace(
    "START", "print(steps)").replace("random.shuffle(docs)", "print(random.sample(docs, 4))"))  # fmt: skip
right("data-order", "entropy for names and noise", """
    import os, random
    import numpy as np
    def noise(shape):
        return np.random.default_rng().normal(size=shape)
    def run_name():
        return random.Random(os.urandom(8)).choice(["red", "green"])
""")  # fmt: skip

# --- data-order: what is taken up again but the rows ------------------------------------------------------------------
RESUMED = """
    import torch
    def load(model, opt, path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        return state["step"]
"""
fault("data-order", "an iterator of a loader that is made for every start", RESUMED + """
    def train(model, opt, path, steps, make_loader):
        first = load(model, opt, path)
        batches = iter(make_loader(seed=1234))  # <-
        for step in range(first, steps):
            loss = model(next(batches))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("data-order", "an object's stream of tokens", RESUMED + """
    class Tokens:
        def __init__(self, path):
            self.path = path
        def __iter__(self):
            yield from open(self.path)
    class Trainer:
        def __init__(self, model, opt, path):
            self.model, self.opt = model, opt
            self.step = load(model, opt, path)
            self.rows = iter(Tokens("train.bin"))  # <-
        def run(self, steps):
            while self.step < steps:
                self.model(next(self.rows)).backward()
                self.opt.step()
                self.opt.zero_grad()
                self.step += 1
""")  # fmt: skip
right("data-order", "a loader that is told where to begin", RESUMED + """
    def train(model, opt, path, steps, make_loader):
        first = load(model, opt, path)
        batches = iter(make_loader(seed=1234, start=first))
        for step in range(first, steps):
            loss = model(next(batches))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("data-order", "a new training that begins with another one's optimizer", """
    import torch
    def train(model, opt, path, steps, make_loader):
        opt.load_state_dict(torch.load(path, weights_only=True))
        batches = iter(make_loader(seed=1234))
        for step in range(steps):
            loss = model(next(batches))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("data-order", "a training that is never taken up again", """
    def train(model, opt, steps, make_loader):
        batches = iter(make_loader(seed=1234))
        for step in range(steps):
            loss = model(next(batches))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip

# --- data-order: the order of a set -----------------------------------------------------------------------------------
fault("data-order", "paths joined in a set", """
    from pathlib import Path
    def corpus(folders):
        paths = set()
        for folder in folders:
            paths |= set(Path(folder).rglob("*.jsonl"))
        return list(paths)
""".replace("return list(paths)", "return list(paths)  # <-"))  # fmt: skip
fault("data-order", "texts without doubles are encoded as they come", """
    def encode_all(lines, tokenizer, out):
        texts = {line.strip() for line in lines}
        for text in texts:  # <-
            out.extend(tokenizer.encode(text))
""")  # fmt: skip
fault("data-order", "what two lists of documents share", """
    def rows(a, b, tokenizer):
        docs = set(a) & set(b)
        return [tokenizer.encode(doc) for doc in docs]  # <-
""")  # fmt: skip
right("data-order", "a set that is sorted, counted and asked", """
    def corpus(files, seen_before):
        names = {f.name for f in files}
        print(len(list(names)))
        if "a.txt" in names:
            return []
        return sorted(names)
""")  # fmt: skip
right("data-order", "a set of numbers", """
    def rows(tokens, width):
        starts = {n * width for n in range(len(tokens) // width)}
        return list(starts)
""")  # fmt: skip

# --- no-kv-cache: the switch among settings ---------------------------------------------------------------------------
fault("no-kv-cache", "keywords in a constant", """
    GREEDY = {"do_sample": False, "use_cache": False, "max_new_tokens": 64}  # <-
    def answer(model, ids):
        return model.generate(ids, **GREEDY)
""")  # fmt: skip
fault("no-kv-cache", "keywords put together from two", """
    DEFAULTS = dict(temperature=0.7,
                    use_cache=False)  # <-
    def answer(model, ids, **more):
        return model.generate(ids, **{**DEFAULTS, "max_new_tokens": 64})
""")  # fmt: skip
fault("no-kv-cache", "keywords changed later", """
    def answer(model, ids, kwargs):
        kwargs["use_cache"] = False  # <-
        return model.generate(ids, **kwargs)
""")  # fmt: skip
fault("no-kv-cache", "the model's own settings", """
    def answer(model, ids):
        model.generation_config.use_cache = False  # <-
        return model.generate(ids)
""")  # fmt: skip
right("no-kv-cache", "switched off for training, and said anew for generation", """
    TRAIN = {"use_cache": False}
    def loss(model, ids):
        return model(ids, labels=ids, **TRAIN).loss
    def answer(model, ids):
        return model.generate(ids, **{**TRAIN, "use_cache": True})
""")  # fmt: skip

# --- eval-mode: whose mode it is --------------------------------------------------------------------------------------
DISTILLED = """
    import torch
    import torch.nn.functional as F
    @torch.no_grad()
    def held_out_loss(student, teacher, batches):
        total = 0.0
        for ids in batches:
            total += F.kl_div(student(ids).log_softmax(-1), teacher(ids).softmax(-1)).item()  # <-
        return total / len(batches)
    def distill(student, teacher, train, val, opt):
        teacher.to("cuda").eval()
        for step, ids in enumerate(train):
            loss = F.kl_div(student(ids).log_softmax(-1), teacher(ids).detach().softmax(-1))
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % 500 == 0:
                MODE
"""
fault("eval-mode", "the teacher's mode is set, the student's is not", DISTILLED.replace(
    "MODE", "print(held_out_loss(student, teacher, val))"))  # fmt: skip
right("eval-mode", "both modes are set", DISTILLED.replace(" # <-", "").replace(
    "MODE", "student.eval(); print(held_out_loss(student, teacher, val)); student.train()"))  # fmt: skip

AGREED = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.out = torch.nn.Dropout(0.1), torch.nn.Linear(64, 512)
        def forward(self, x):
            return self.out(self.drop(x))
    @torch.no_grad()
    def agreement(student, teacher, batches):
        same = 0.0
        for x in batches:
            wanted = teacher(x).argmax(-1)
            same += (student(x).argmax(-1) == wanted).float().mean().item()  # <-
        return same / len(batches)
    def distill(batches, held_out):
        student, teacher = Net(), Net()
        opt = torch.optim.AdamW(student.parameters())
        teacher.eval()
        for x in batches:
            loss = torch.nn.functional.mse_loss(student(x), teacher(x).detach())
            loss.backward()
            opt.step()
            opt.zero_grad()
        MODE
        return agreement(student, teacher, held_out)
"""
fault("eval-mode", "the model that is run second, and trained", AGREED.replace("MODE", "print(loss)"))
right("eval-mode", "both, the second one later", AGREED.replace(" # <-", "").replace("MODE", "student.eval()"))
right("eval-mode", "the second one is never trained", AGREED.replace(" # <-", "").replace(
    "MODE", "student.eval()").replace("        teacher.eval()\n", "").replace(
    "teacher(x).argmax(-1)", "student(x).argmax(-1)").replace(
    "(student(x).argmax(-1) == wanted)", "(teacher(x).argmax(-1) == wanted)"))  # fmt: skip
TWO_OF_ONE = """
    import torch
    class Judge:
        def __init__(self, net, decoder):
            self.net, self.decoder = net, decoder
            self.opt = torch.optim.AdamW(list(self.net.parameters()) + list(self.decoder.parameters()))
            self.drop = torch.nn.Dropout(0.1)
        def fit(self, rows):
            for x in rows:
                loss = (self.net(x) - self.decoder(x)).square().mean()
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
        @torch.no_grad()
        def evaluate(self, rows):
            self.net.eval()
            total = 0.0
            for x in rows:
                total += self.net(x).sum().item()
                total += self.decoder(x).sum().item()  # <-
            self.net.train()
            return total
"""
fault("eval-mode", "one of two models of an object", TWO_OF_ONE)
right("eval-mode", "both models of an object", TWO_OF_ONE.replace("  # <-", "").replace(
    "self.net.eval()", "self.net.eval(); self.decoder.eval()"))  # fmt: skip

# --- rng: one stream of the process, many requests --------------------------------------------------------------------
fault("rng", "a handler of Flask seeds all", """
    import torch
    from flask import Flask, request
    app = Flask(__name__)
    @app.route("/generate", methods=["POST"])
    def generate():
        body = request.get_json()
        return answer(body["prompt"], body.get("seed", 0))
    def answer(prompt, seed):
        torch.manual_seed(seed)  # <-
        return model.generate(prompt, do_sample=True)
""")  # fmt: skip
fault("rng", "jobs of a pool of threads", """
    import torch
    from concurrent.futures import ThreadPoolExecutor
    pool = ThreadPoolExecutor(4)
    def work(job):
        torch.manual_seed(job.seed)  # <-
        probs = model(job.ids).softmax(-1)
        return torch.multinomial(probs, 1)
    def enqueue(job):
        return pool.submit(work, job)
""")  # fmt: skip
SOCKET = """
    import asyncio
    import torch
    from fastapi import FastAPI, WebSocket
    app = FastAPI()
    lock = asyncio.Lock()
    @app.websocket("/talk")
    async def talk(socket: WebSocket):
        asked = await socket.receive_json()
        await answer(socket, asked["ids"], asked["seed"])
    async def answer(socket, ids, seed):
        torch.manual_seed(seed)  # <-
        for _ in range(64):
            token = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
            SEND
            ids = torch.cat([ids, token], 1)
"""
SENT = "await socket.send_text(decode(token))"
fault("rng", "a coroutine that sends each token", SOCKET.replace("SEND", SENT))
right("rng", "a coroutine that waits for nothing between seed and draw", SOCKET.replace("SEND", "print(token)").replace(
    "  # <-", ""))  # fmt: skip
right("rng", "a coroutine that holds a lock", SOCKET.replace("SEND", SENT).replace("  # <-", "").replace(
    "        await answer(", "        async with lock:\n            await answer("))  # fmt: skip
fault("rng", "an async handler that hands the drawing to a thread", """
    import asyncio
    import torch
    from aiohttp import web
    async def complete(request):
        body = await request.json()
        torch.manual_seed(body["seed"])  # <-
        ids = await asyncio.to_thread(draw, body["ids"])
        return web.json_response(ids)
    def draw(ids):
        return torch.multinomial(model(ids).softmax(-1), 1).tolist()
    app = web.Application()
    app.router.add_post("/complete", complete)
""")  # fmt: skip
fault("rng", "a stream that the server takes piece by piece", """
    import torch
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    app = FastAPI()
    @app.post("/stream")
    async def stream(req: dict):
        return StreamingResponse(pieces(req["ids"], req["seed"]))
    async def pieces(ids, seed):
        torch.manual_seed(seed)  # <-
        for _ in range(64):
            token = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
            ids = torch.cat([ids, token], 1)
            yield decode(token)
""")  # fmt: skip
OWN_STREAM = """
    import asyncio
    import torch
    class Writer:
        def __init__(self, model):
            self.model, self.dice = model, torch.Generator()
        async def write(self, ids, seed):
            self.dice.manual_seed(seed)  # <-
            for _ in range(64):
                token = torch.multinomial(self.model(ids)[:, -1].softmax(-1), 1, generator=self.dice)
                await asyncio.sleep(0)
                ids = torch.cat([ids, token], 1)
            return ids
    WRITERS
        jobs = [asyncio.create_task(MINE.write(ids, seed)) for ids, seed in asked]
        return await asyncio.gather(*jobs)
"""
fault("rng", "one object's stream under many tasks", OWN_STREAM.replace(
    "WRITERS", "writer = Writer(model)\n    async def all_of(asked):").replace("MINE", "writer"))  # fmt: skip
right("rng", "an object for each task", OWN_STREAM.replace("  # <-", "").replace(
    "WRITERS", "async def all_of(asked):").replace("MINE", "Writer(model)"))  # fmt: skip
right("rng", "an async handler that draws before it waits", """
    import torch
    from fastapi import FastAPI
    app = FastAPI()
    @app.post("/complete")
    async def complete(req):
        body = await req.json()
        torch.manual_seed(body["seed"])
        token = torch.multinomial(model(body["ids"]).softmax(-1), 1)
        await log(token)
        return token
""")  # fmt: skip
right("rng", "a generator for each request", """
    import torch
    from fastapi import FastAPI
    app = FastAPI()
    @app.post("/complete")
    def complete(req):
        dice = torch.Generator().manual_seed(req.seed)
        return torch.multinomial(model(req.ids).softmax(-1), 1, generator=dice)
""")  # fmt: skip
right("rng", "one request at a time", """
    import threading
    import torch
    from fastapi import FastAPI
    app = FastAPI()
    lock = threading.Lock()
    @app.post("/complete")
    def complete(req):
        with lock:
            torch.manual_seed(req.seed)
            return torch.multinomial(model(req.ids).softmax(-1), 1)
""")  # fmt: skip
right("rng", "rows of one call whose seed is counted on", """
    import torch
    class Sampler:
        def __init__(self, model):
            self.model, self.calls = model, 0
        def answers(self, ids, n):
            self.calls += 1
            dice = torch.Generator().manual_seed(17 + self.calls)
            ids = ids.expand(n, -1)
            return torch.multinomial(self.model(ids)[:, -1].softmax(-1), 1, generator=dice)
""")  # fmt: skip
CALLER = """
    import torch
    def answers(model, ids, n, SEED):
        dice = torch.Generator().manual_seed(seed)  # <-
        ids = ids.expand(n, -1)
        return torch.multinomial(model(ids)[:, -1].softmax(-1), 1, generator=dice)
"""
fault("rng", "rows of one call whose seed is a number", CALLER.replace("SEED", "seed=42"))
right("rng", "rows of one call whose seed the caller gives", CALLER.replace("  # <-", "").replace("SEED", "seed"))
fault("rng", "rows of many prompts whose seed the caller gives", CALLER.replace("n, SEED", "batch_size, seed").replace(
    "n, -1", "batch_size, -1"))  # fmt: skip

# --- host-sync: what is asked every so many tokens --------------------------------------------------------------------
DECODED = """
    import torch
    @torch.inference_mode()
    def generate(model, ids, n, cache, eos):
        out, done = [ids], torch.zeros(ids.size(0), 1, dtype=torch.bool, device=ids.device)
        for i in range(n):
            ids = torch.multinomial(model(ids, cache)[:, -1].softmax(-1), 1)
            done |= ids == eos
            out.append(ids)
            if TEST:  # <-
                break
        return torch.cat(out, 1)
"""
fault("host-sync", "asked at all tokens but every eighth", DECODED.replace("TEST", "i % 8 and bool(done.all())"))
fault("host-sync", "asked at every token, then a counter", DECODED.replace("TEST", "done.all() and i % 8 == 0"))
SELDOM = ("i % 8 == 7 and bool(done.all())", "not i % 8 and done.all()", "i == n - 1 or (i % 8 == 0 and done.all())")
for seldom in SELDOM:
    right("host-sync", f"asked seldom: {seldom}", DECODED.replace("TEST", seldom).replace("  # <-", ""))


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in STYLES.variants])
def test_what_shows_between_runs_is_found_in_every_style_and_nothing_in_code_that_is_right(variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or "missed"


def test_a_training_loop_that_is_not_compiled_names_the_line_where_its_model_is_made_too():
    cells = """
import torch
from transformers import LlamaForCausalLM
net = LlamaForCausalLM(config).to("cuda")
opt = torch.optim.AdamW(net.parameters())
for step in range(100):
    net(batch(step)).loss.backward()
    opt.step()
    opt.zero_grad()
"""
    found = [one for one in scan_texts({"cells.py": cells}).findings if one.rule == "S21"]
    assert [(one.line, one.also) for one in found] == [(6, (("cells.py", 4, "<module>"),))]
