"""How different hands write faults of files and texts: orders of data, pickles, text of a model that is run."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WRITINGS = Collection()
fault, right = WRITINGS.fault, WRITINGS.right

# --- data-order -------------------------------------------------------------------------------------------------------
fault("data-order", "a set comprehension made a list", """
    def topics(rows):
        return list({row["topic"] for row in rows})  # <-
""")  # fmt: skip
fault("data-order", "looked up in the order of a set", """
    def rest(docs, blocked):
        keep = set(docs) - set(blocked.read_text().split())
        chosen = [docs[name] for name in keep]  # <-
        return chosen
""")  # fmt: skip
fault("data-order", "hash of an address", """
    class Shards:
        def mine(self):
            return [u for u in self.urls if hash(u) % self.world == self.rank]  # <-
""")  # fmt: skip
fault("data-order", "an engine restores all but the data", """
    def forever(loader):
        while True:
            yield from loader
    def train(engine, loader, steps, path):
        _, client = engine.load_checkpoint(path)
        start = client["step"] if client else 0
        rows = forever(loader)  # <-
        for step in range(start, steps):
            loss = engine(next(rows))
            engine.backward(loss)
            engine.step()
""")  # fmt: skip
fault("data-order", "written down in an order that nobody seeds", """
    import random
    import numpy as np
    def build(paths, out):
        random.shuffle(paths)  # <-
        np.save(out, np.concatenate([np.load(p) for p in paths]))
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
fault("data-order", "sort by mtime", """
    import os, glob
    def shards(root):
        return sorted(glob.glob(root + "/*.bin"), key=os.path.getmtime)  # <-
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
right("data-order", "a set put in order", """
    def topics(rows):
        return sorted({row["topic"] for row in rows})
""")  # fmt: skip
right("data-order", "sets of stop words sorted", """
    def vocab(texts):
        return sorted({w for t in texts for w in t.split()})
""")  # fmt: skip
# --- pickle -----------------------------------------------------------------------------------------------------------
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
fault("pickle", "ruamel unsafe", """
    from ruamel.yaml import YAML
    def cfg(p):
        return YAML(typ="unsafe").load(p)  # <-
""")  # fmt: skip
fault("pickle", "hub url", """
    import torch
    def weights(url):
        return torch.hub.load_state_dict_from_url(url, map_location="cpu")  # <-
""")  # fmt: skip
fault("pickle", "hub repo", """
    import torch
    def net():
        return torch.hub.load("someone/repo", "net", trust_repo=True)  # <-
""")  # fmt: skip
fault("pickle", "getattr", """
    import pickle
    def load(kind, f):
        return getattr(pickle, "load")(f)  # <-
""")  # fmt: skip
right("pickle", "queue recv", """
    def f(sock):
        return sock.recv(1024)
""")  # fmt: skip
right("pickle", "weights only", """
    import torch
    def load(p):
        return torch.load(p, map_location="cpu", weights_only=True)
""")  # fmt: skip
right("pickle", "yaml safe", """
    import yaml
    def c(p):
        return yaml.safe_load(open(p))
""")  # fmt: skip
# --- eval-output ------------------------------------------------------------------------------------------------------
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
fault("eval-output", "arguments of a call in the text", r"""
    import re
    CALL = re.compile(r"\[\[(\w+)\((.*?)\)\]\]")
    def run(text, table):
        for name, inside in CALL.findall(text):
            args = eval(f"({inside},)")  # <-
            yield table[name](*args)
    def act(agent, r):
        said = agent.think("x")
        return list(run(said, {}))
""")  # fmt: skip
fault("eval-output", "a thread's work", """
    import threading
    def work(job):
        exec(job)  # <-
    def serve(model, tok, ids):
        code = tok.decode(model.generate(ids)[0])
        threading.Thread(target=work, args=(code,)).start()
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
fault("eval-output", "char level join", """
    def answer(model, itos, ids):
        out = model.sample(ids, 32)
        s = "".join(itos[int(i)] for i in out)
        return eval(s)  # <-
""")  # fmt: skip
fault("eval-output", "communicate", """
    import subprocess
    def check(completion):
        p = subprocess.Popen(["python3"], stdin=subprocess.PIPE, text=True)
        return p.communicate(completion)  # <-
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
