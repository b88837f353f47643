"""How different hands write faults of files and texts: orders of data, pickles, text of a model that is run."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WRITINGS = Collection()
fault, right = WRITINGS.fault, WRITINGS.right

# --- data-order -------------------------------------------------------------------------------------------------------
fault("data-order", "shards by iterdir", """
    from pathlib import Path
    import numpy as np
    def token_stream(folder):
        for p in Path(folder).iterdir():  # <-
            if p.suffix == ".npy":
                yield from np.load(p)
""")  # fmt: skip
fault("data-order", "generator seed from pid", """
    import os
    import numpy as np
    class Rows:
        def __init__(self, data):
            self.data = data
            self.rng = np.random.default_rng(os.getpid())  # <-
        def order(self):
            return self.rng.permutation(len(self.data))
""")  # fmt: skip
fault("data-order", "checkpoint without sampler in step loop", """
    import itertools, torch
    def train(model, opt, sched, loader, path, total):
        step = 0
        if path.exists():
            s = torch.load(path, weights_only=True)
            model.load_state_dict(s["model"])
            opt.load_state_dict(s["opt"])
            sched.load_state_dict(s["sched"])
            step = s["step"]
        data = itertools.cycle(torch.utils.data.DataLoader(loader, batch_size=4, shuffle=True))  # <-
        while step < total:
            loss = model(next(data))
            loss.backward()
            opt.step()
            opt.zero_grad()
            sched.step()
            step += 1
            if step % 500 == 0:
                kept = {"model": model.state_dict(), "opt": opt.state_dict(), "sched": sched.state_dict(), "step": step}
                torch.save(kept, str(path) + ".tmp")
""")  # fmt: skip
fault("data-order", "results of a pool as they come", """
    from multiprocessing import Pool
    def tokenize_all(files, tok, out):
        with Pool() as pool:
            for arr in pool.imap_unordered(tok, files):  # <-
                arr.tofile(out)
""")  # fmt: skip
fault("data-order", "dedup by set", """
    def dedup(texts):
        uniq = set(texts)
        return [t for t in uniq if len(t) > 10]  # <-
""")  # fmt: skip
fault("data-order", "sampler object with state only of the epoch", """
    import torch
    class ResumableSampler(torch.utils.data.Sampler):
        def __init__(self, n, seed):
            self.n, self.seed, self.epoch, self.index = n, seed, 0, 0
        def state_dict(self):  # <-
            return {"epoch": self.epoch, "index": self.index}
        def load_state_dict(self, s):
            self.epoch, self.index = s["epoch"], s["index"]
        def __iter__(self):
            g = torch.Generator().manual_seed(self.seed + self.epoch)
            for i in torch.randperm(self.n, generator=g).tolist():
                self.index += 1
                yield i
            self.epoch += 1
            self.index = 0
""")  # fmt: skip
fault("data-order", "unseeded numpy shuffle before packing", """
    import numpy as np
    def pack(docs, path):
        order = np.random.permutation(len(docs))  # <-
        np.concatenate([docs[i] for i in order]).tofile(path)
""")  # fmt: skip
fault("data-order", "a set comprehension made a list", """
    def topics(rows):
        return list({row["topic"] for row in rows})  # <-
""")  # fmt: skip
fault("data-order", "sort by hash", """
    def order(docs):
        return sorted(docs, key=lambda d: hash(d["text"]))  # <-
""")  # fmt: skip
fault("data-order", "scandir", """
    import os
    def shards(data_dir):
        return [e.path for e in os.scandir(data_dir) if e.name.endswith(".bin")]  # <-
""")  # fmt: skip
right("data-order", "groups of an epoch's batches", """
    import torch
    def groups(loader, n):
        group = []
        for batch in loader:
            group.append(batch)
            if len(group) == n:
                yield group
                group = []
    def train(model, opt, loader, sampler, path, epochs):
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        opt.load_state_dict(kept["opt"])
        for epoch in range(kept["epoch"], epochs):
            sampler.set_epoch(epoch)
            for group in groups(loader, 4):
                for x in group:
                    loss = model(x)
                    loss.backward()
                opt.step()
                opt.zero_grad()
            torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "epoch": epoch + 1}, path + ".tmp")
""")  # fmt: skip
right("data-order", "set of extensions", """
    def readable(path):
        return path.suffix in {".txt", ".md"}
""")  # fmt: skip
right("data-order", "a set put in order", """
    def topics(rows):
        return sorted({row["topic"] for row in rows})
""")  # fmt: skip
# --- pickle -----------------------------------------------------------------------------------------------------------
fault("pickle", "registry loader class attribute", """
    import pickle
    class Artifact:
        reader = staticmethod(pickle.load)  # <-
        def open(self, path):
            with open(path, "rb") as f:
                return self.reader(f)
""")  # fmt: skip
fault("pickle", "torch load by settings", """
    import torch
    class Config:
        safe_load = False
    def restore(path, cfg=Config()):
        return torch.load(path, map_location="cpu", weights_only=cfg.safe_load)  # <-
""")  # fmt: skip
fault("pickle", "dataset cache", """
    import os, pickle
    def cached(path, build):
        if os.path.exists(path):
            return pickle.load(open(path, "rb"))  # <-
        rows = build()
        pickle.dump(rows, open(path, "wb"))
        return rows
""")  # fmt: skip
fault("pickle", "npz objects", """
    import numpy as np
    def vocab(p):
        z = np.load(p, allow_pickle=True, mmap_mode=None)  # <-
        return z["words"].item()
""")  # fmt: skip
fault("pickle", "remote code tokenizer", """
    from transformers import AutoTokenizer, AutoModelForCausalLM
    def load(name, **kw):
        tok = AutoTokenizer.from_pretrained(name, trust_remote_code=True)  # <-
        return tok, AutoModelForCausalLM.from_pretrained(name, **kw)
""")  # fmt: skip
fault("pickle", "download and load", """
    import io, requests, torch
    def fetch(url):
        r = requests.get(url)
        return torch.load(io.BytesIO(r.content), weights_only=False)  # <-
""")  # fmt: skip
fault("pickle", "settings class", """
    import torch
    from dataclasses import asdict, dataclass
    @dataclass
    class Reading:
        map_location: str = "cpu"
        weights_only: bool = False
    def read(path, how: Reading):
        return torch.load(path, **asdict(how))  # <-
""")  # fmt: skip
fault("pickle", "env variable", """
    import os
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # <-
""")  # fmt: skip
fault("pickle", "numpy positional", """
    import numpy as np
    def load(p):
        return np.load(p, None, True)  # <-
""")  # fmt: skip
fault("pickle", "yaml load_all", """
    import yaml
    def cfgs(p):
        return list(yaml.load_all(open(p), Loader=yaml.Loader))  # <-
""")  # fmt: skip
right("pickle", "queue recv", """
    def f(sock):
        return sock.recv(1024)
""")  # fmt: skip
right("pickle", "safetensors", """
    from safetensors.torch import load_file
    def load(p):
        return load_file(p)
""")  # fmt: skip
right("pickle", "json cache", """
    import json
    def load(p):
        return json.load(open(p))
""")  # fmt: skip
# --- eval-output ------------------------------------------------------------------------------------------------------
fault("eval-output", "verifier in a reward class", r"""
    class CodeReward:
        def __call__(self, prompts, completions, tests):
            return [self.run(c, t) for c, t in zip(completions, tests)]
        def run(self, text, test):
            env = {}
            try:
                exec(text + "\n" + test, env)  # <-
            except Exception:
                return 0.0
            return 1.0
""")  # fmt: skip
fault("eval-output", "shell tool of an agent with dict dispatch", """
    import subprocess
    class Agent:
        def __init__(self, model):
            self.model = model
            self.tools = {"bash": self.bash, "stop": lambda a: None}
        def bash(self, arg):
            return subprocess.run(arg, shell=True, capture_output=True, text=True).stdout  # <-
        def turn(self, history):
            text = self.model.chat(history)
            name, _, arg = text.partition(" ")
            return self.tools[name](arg)
""")  # fmt: skip
fault("eval-output", "json answer by eval", """
    import json
    def parse(raw):
        try:
            return json.loads(raw)
        except json.JSONDecodeError:
            return eval(raw)  # <-
    def extract(client, text):
        r = client.chat.completions.create(model="x", messages=[{"role": "user", "content": text}])
        return parse(r.choices[0].message.content)
""")  # fmt: skip
fault("eval-output", "vllm outputs", """
    def grade(llm, prompts, gold):
        outs = llm.generate(prompts)
        hits = 0
        for o, g in zip(outs, gold):
            ans = o.outputs[0].text.split("=")[-1]
            hits += eval(ans) == g  # <-
        return hits
""")  # fmt: skip
fault("eval-output", "timed run in a temp dir", """
    import os, subprocess, sys, tempfile
    def execute(code, timeout):
        with tempfile.TemporaryDirectory() as d:
            p = os.path.join(d, "main.py")
            with open(p, "w") as f:
                f.write(code)
            return subprocess.run([sys.executable, p], timeout=timeout, capture_output=True)  # <-
    def pass_rate(gens):
        return sum(execute(g, 5).returncode == 0 for g in gens) / len(gens)
    def main(model, tok, prompts):
        gens = [tok.decode(model.generate(p)[0]) for p in prompts]
        print(pass_rate(gens))
""")  # fmt: skip
fault("eval-output", "sympy in judge", """
    from sympy import sympify
    def equal(a, b):
        return sympify(a) == sympify(b)  # <-
    def judge(completion, gold):
        return equal(completion.split("boxed")[-1], gold)
""")  # fmt: skip
fault("eval-output", "mapped over", """
    def scores(judge, prompts):
        replies = judge.ask(prompts)
        return list(map(eval, replies))  # <-
""")  # fmt: skip
fault("eval-output", "candidates ranked", """
    def strip(text):
        return text.split("```", 1)[0]
    def passes(source, cases):
        code = compile(source, "<x>", "exec")
        exec(code, {})  # <-
        return len(cases)
    class Sampler:
        def draw(self, n):
            return [self.tok.decode(row) for row in self.rows(n)]
    def solve(task, sampler):
        return max((passes(s, task["cases"]), s) for s in map(strip, sampler.draw(16)))
""")  # fmt: skip
fault("eval-output", "df eval", """
    def table_qa(llm, df, q):
        expr = llm.complete(q)
        return df.eval(expr)  # <-
""")  # fmt: skip
fault("eval-output", "ssh", """
    def act(ssh, llm, goal):
        _, out, _ = ssh.exec_command(llm.complete(goal))  # <-
        return out.read()
""")  # fmt: skip
right("eval-output", "docker", """
    import subprocess
    def run(llm, q):
        code = llm.complete(q)
        return subprocess.run(["docker", "run", "--network", "none", "py", "python", "-c", code])
""")  # fmt: skip
right("eval-output", "parsed numbers", """
    def scores(judge, prompts):
        return [float(reply.strip()) for reply in judge.ask(prompts)]
""")  # fmt: skip
right("eval-output", "literal_eval", """
    import ast
    def parse(model, tok, ids):
        return ast.literal_eval(tok.decode(model.generate(ids)[0]))
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WRITINGS.variants])
def test_each_writing_of_a_fault_of_files_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
