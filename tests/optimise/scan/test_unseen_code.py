"""What the scan took for faults in code bases that no rule was made with, written anew, each beside its real fault."""

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- a class that is handed over makes a model, and runs none ---------------------------------------------------------
LOADS = """
    import torch
    from torch import nn
    class Net(nn.Module):
        def forward(self, x):
            return self.up(x)
    def evaluate_from({made}, settings, rows):
        first = {call}
        first.load_state_dict(torch.load(settings.path))
        return first.eval()
"""
right("S45", LOADS.format(made="model_cls=Net", call="model_cls(settings)"))
right("S45", LOADS.format(made="net_type: type[Net]", call="net_type(settings)"))
right("S45", LOADS.format(made="network=Net", call="network(settings)"))
fault("S45", LOADS.format(made="model", call="model(rows)"))

# --- whose mode an evaluation sets ------------------------------------------------------------------------------------
LOOKS = """
    import torch
    def load_model(path):
        net = torch.load(path, weights_only=True)
        return net, path
    def look(model, path):
        {made}
        net.eval()
        with torch.no_grad():
            return score(net)
    def train(model, opt, rows, path):
        for step, (x, y) in enumerate(rows):
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % 1000 == 0:
                look(model, path)
"""
right("S47", LOOKS.format(made="net, name = load_model(path)"))
right("S47", LOOKS.format(made="net = copy.deepcopy(model)"))
fault("S47", LOOKS.format(made="net = model"))
fault("S47", LOOKS.format(made="net = unwrap(model)"))

# --- a model that a helper compiles -----------------------------------------------------------------------------------
SPREAD = """
    import torch
    from dataclasses import dataclass
    {reads}
    @dataclass
    class Spread:
        compile: bool = False
    def spread_out(model, settings: Spread):
        shard(model)
        if settings.compile:
            model.{method}()
        return model
    def train(opt, rows, settings: Spread):
        model = make_model()
        model = spread_out(model, settings)
        for x, y in rows:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
"""
right("S21", SPREAD.format(reads="from omegaconf import OmegaConf", method="compile"))
fault("S21", SPREAD.format(reads="", method="compile"))
fault("S21", SPREAD.format(reads="from omegaconf import OmegaConf", method="train"))

# --- tests that stand beside the code ---------------------------------------------------------------------------------
BESIDE = """
    import torch
    import torch.distributed as dist
    def main(model, opt, rows):
        dist.init_process_group("nccl")
        torch.manual_seed(0)
        for x, y in rows:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
    def {name}({handed}):
        model, opt = toy()
        for _ in range(4):
            noisy = model(torch.randn_like(BATCH))
            noisy.backward()
            opt.step()
            opt.zero_grad()
"""
right("S08", BESIDE.format(name="test_toy", handed=""))
fault("S08", BESIDE.format(name="denoise", handed=""))

# --- what was moved to the processor ----------------------------------------------------------------------------------
ROWS = """
    import torch
    import torch.nn.functional as F
    class Scorer:
        def score_all(self, rows):
            texts, scores = [], []
            for row in rows:
                logits = self.model(row.cuda()){moved}
                scores.append(F.cross_entropy(logits, row, reduction="none"))
                texts.append(self.model.generate(row))
            return texts, scores
    def report(scorer: Scorer, rows):
        _, scores = scorer.score_all(rows)
        return [one.sum().item() for one in scores]
"""
right("S39", ROWS.format(moved=".cpu()"))
fault("S39", ROWS.format(moved=""))
SEEN = """
    import torch
    def show(trainer, letters, model):
        if {test}:
            out = model(trainer.prompt.to("cuda")).argmax(-1)[0]
            print("".join(letters[int(one)] for one in out))
"""
right("S39", SEEN.format(test="trainer.step % 500 == 0"))
fault("S39", SEEN.format(test="letters"))

# --- what a norm gives is no weight -----------------------------------------------------------------------------------
NORM = """
    import torch.nn.functional as F
    from torch import nn
    class Norm(nn.Module):
        def forward(self, x):
            out = x.float() * x.float().pow(2).mean(-1, keepdim=True).rsqrt()
            return (out * self.weight.float()).type_as(x)
    class Head(nn.Module):
        def __init__(self):
            self.norm = Norm()
        def forward(self, x):
            {cast}
            return F.linear(x, self.table.weight)
"""
right("S41", NORM.format(cast="x = self.norm(x)"))
fault("S41", NORM.format(cast="return F.linear(x, (self.table.weight * self.scale).to(x.dtype))"))

# --- what the forward pass switches off -------------------------------------------------------------------------------
POOLS = """
    from torch import nn
    class Pool(nn.Module):
        def forward(self, x, level):
            mask, _ = self.pool(level, places={asked})
            return x * mask
        def pool(self, level, places=True):
            mask = level > 1
            found = None
            if places:
                found = mask.nonzero()
            return mask, found
        def generate(self, level):
            return self.pool(level)
"""
right("S32", POOLS.format(asked="False"))
fault("S32", POOLS.format(asked="True"))

# --- widths of an evaluation ------------------------------------------------------------------------------------------
WIDTHS = """
    import torch
    def look(model, rows, mask):
        longest = mask.sum(1).max()
        return model(rows[:, :longest])
    def train(net, opt, loader, mask):
        model = torch.compile(net)
        for step, (x, y) in enumerate(loader):
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            {when}
                look(model, x, mask)
"""
right("S22", WIDTHS.format(when="if step % 1000 == 0:"))
fault("S22", WIDTHS.format(when="if y is not None:"))

# --- scores of attention ----------------------------------------------------------------------------------------------
SCORES = """
    import torch
    def entropy_of(query, key, head, hidden):
        logits = {made}
        logits = mask_logits(logits.float())
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
"""
right("S40", SCORES.format(made="query @ key.transpose(-1, -2)"))
fault("S40", SCORES.format(made="head(hidden)"))

# --- a state that another object saves --------------------------------------------------------------------------------
KEPT = """
    import torch
    class Progress:
        def state_dict(self):
            return {{"step": self.step, {more}}}
    def save(path, model, opt, progress):
        state = {{"model": model.state_dict(), "opt": opt.state_dict()}}
        torch.save(state, path / "state.pt")
        torch.save(progress.state_dict(), path / "progress.pt")
    def train(model, opt, rows, schedule, progress, path):
        for x, y in rows:
            loss = model(x, y)
            loss.backward()
            opt.step()
            schedule.step()
            opt.zero_grad()
            progress.step += 1
            save(path, model, opt, progress)
"""
right("S92", KEPT.format(more='"schedule": self.schedule.state_dict()'))
fault("S92", KEPT.format(more='"rows": self.rows'))

# --- a folder that says when it is whole ------------------------------------------------------------------------------
MARKED = """
    import json
    import torch.distributed.checkpoint as dcp
    DONE = "done.json"
    def save_checkpoint(model, opt, folder, step):
        state = {{"model": model.state_dict(), "opt": opt.state_dict()}}
        dcp.save(state, checkpoint_id=folder)
        with open(folder / DONE, "w") as file:
            json.dump(step, file)
    def newest(folders):
        return max(one for one in folders if {asked})
"""
right("S60", MARKED.format(asked="(one / DONE).is_file()"))
fault("S60", MARKED.format(asked="one.is_dir()"))

# --- an evaluation that begins alike each time ------------------------------------------------------------------------
ALIKE = """
    import numpy as np
    def choose(seed, count):
        return np.random.default_rng((seed, 3)).integers(0, count, 8)
    def {name}(model, held_out):
        return [model(held_out[i]) for i in choose(0, len(held_out))]
    def train(model, opt, rows, held_out):
        for x, y in rows:
            loss = model(x, y) + {used}
            loss.backward()
            opt.step()
            opt.zero_grad()
"""
right("S03", ALIKE.format(name="eval_on_rows", used="0 * eval_on_rows(model, held_out)[0].detach()"))
fault("S03", ALIKE.format(name="mix_in", used="mix_in(model, held_out)[0]"))


# --- a name that is tested and goes on from itself --------------------------------------------------------------------
AGAIN = """
    import torch
    def train(model, opt, rows, groups):
        odd = False
        for group in groups:
            odd = odd or {more}
        for x, y in rows:
            loss = model(x, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            if odd:
                opt.note()
"""
right("S30", AGAIN.format(more='group.get("odd", False)'))


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_the_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_what_only_looks_like_it_is_not(rule, code):
    check_right(rule, code)
