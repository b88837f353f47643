"""Faults and near misses of the rules about what is written, read and run: saves, pickles, the text of a model."""

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S60 -------------------------------------------------------------------------------------------------------------
fault("S60", """
    import torch
    def save(model, path):
        torch.save(model.state_dict(), path)
""")  # fmt: skip
fault("S60", """
    from torch import save
    def keep(ckpt, out):
        save(ckpt, f"{out}/last.pt")
""")  # fmt: skip
right("S60", """
    import os, torch
    def save(model, path):
        torch.save(model.state_dict(), path + ".tmp")
        os.replace(path + ".tmp", path)
""")  # fmt: skip
right("S60", """
    import io, torch
    def pack(model):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        return buffer.getvalue()
""")  # fmt: skip

# --- S92 -------------------------------------------------------------------------------------------------------------
RUN = """
    import os, torch
    def save(model, opt, sched, step, path):
        torch.save(STATE, path + ".tmp")
        os.replace(path + ".tmp", path)
    def train(model, opt, loader):
        sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: 1.0)
        for step, (x, y) in enumerate(loader):
            loss = model(x, y)
            loss.backward()
            opt.step()
            sched.step()
            opt.zero_grad()
            save(model, opt, sched, step, "last.pt")
"""
BOTH = '{"model": model.state_dict(), "opt": opt.state_dict(), "step": step}'
fault("S92", RUN.replace("STATE", BOTH))
fault("S92", RUN.replace("STATE", '{"model": model.state_dict(), "sched": sched.state_dict(), "step": step}'))
right("S92", RUN.replace("STATE", BOTH.replace('"step"', '"sched": sched.state_dict(), "step"')))
right("S92", RUN.replace("STATE", '{"model": model.state_dict(), "config": CONFIG}'))
LIT = """
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    def run(module, loader):
        keep = ModelCheckpoint("out", save_last=True, save_weights_only=ONLY)
        L.Trainer(max_epochs=3, callbacks=[keep]).fit(module, loader, ckpt_path="last")
"""
fault("S92", LIT.replace("ONLY", "True"))
right("S92", LIT.replace("ONLY", "False"))
right("S92", LIT.replace("ONLY", "True").replace(', ckpt_path="last"', ""))

# --- S61 -------------------------------------------------------------------------------------------------------------
fault("S61", "import pickle\ndef load(p):\n    with open(p, 'rb') as f:\n        return pickle.load(f)\n")
fault("S61", "from torch import load as read\nstate = read('a.pt', weights_only=False)\n")
fault("S61", "import numpy as np\nx = np.load('a.npy', allow_pickle=True)\n")
fault("S61", "import yaml\nx = yaml.load(open('a.yml'), Loader=yaml.Loader)\n")
right("S61", "import torch\nstate = torch.load('a.pt', weights_only=True)\n")
right("S61", "import json, yaml\nx = json.load(open('a.json'))\ny = yaml.safe_load(open('a.yml'))\n")

# --- S62 -------------------------------------------------------------------------------------------------------------
fault("S62", """
    def run_tool(expression):
        return eval(expression, {"__builtins__": {}})
    def step(tokenizer, ids):
        return run_tool(tokenizer.decode(ids).strip())
""")  # fmt: skip
fault("S62", """
    import subprocess, sys
    def check(completion):
        return subprocess.run([sys.executable, "-c", completion])
""")  # fmt: skip
fault("S62", """
    import os
    def agent(client, messages):
        reply = client.chat.completions.create(messages=messages).choices[0].message.content
        os.system(reply)
""")  # fmt: skip
right("S62", """
    import ast
    def run_tool(tokenizer, ids):
        return ast.literal_eval(tokenizer.decode(ids))
""")  # fmt: skip
right("S62", "exec(open('configurator.py').read())\nmodel.eval()\n")
right("S62", """
    import subprocess
    def tidy(path, completion):
        path.write_text(completion)
        return subprocess.run(["python", "tools/format.py"], check=True)
""")  # fmt: skip


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
