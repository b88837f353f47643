"""Families of faults of training: copies in lists and dicts, texts of devices, drawn sizes, modes set by helpers."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

FAMILIES = Collection()
fault, right = FAMILIES.fault, FAMILIES.right

# --- async-copy -------------------------------------------------------------------------------------------------------
fault("async-copy", "several tensors in one list, read one by one", """
    import torch
    class Mover:
        def __init__(self):
            self.stream = torch.cuda.Stream()
        def down(self, tensors):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                copies = [t.to("cpu", non_blocking=True) for t in tensors]  # <-
            return [c.tolist() for c in copies]
""")  # fmt: skip
fault("async-copy", "unpacked and printed", """
    import torch
    def report(loss, norm):
        a, b = (x.detach().to("cpu", non_blocking=True) for x in (loss, norm))  # <-
        print(a.item(), b.item())
""")  # fmt: skip
fault("async-copy", "a dict of copies, written as numbers", """
    import torch
    HOST = {"device": "cpu", "non_blocking": True}
    def numbers(metrics):
        moved = {name: value.to(**HOST) for name, value in metrics.items()}  # <-
        return {name: float(value.mean()) for name, value in moved.items()}
""")  # fmt: skip
fault("async-copy", "only the device waits", """
    import torch
    def fetch(x, side):
        with torch.cuda.stream(side):
            y = x.to("cpu", non_blocking=True)  # <-
        torch.cuda.current_stream().wait_stream(side)
        return y.numpy()
""")  # fmt: skip
fault("async-copy", "another method reads the buffer", """
    import torch
    class Monitor:
        def __init__(self, n):
            self.host = torch.zeros(n, pin_memory=True)
        def push(self, values):
            self.host.copy_(values, non_blocking=True)  # <-
        def worst(self):
            return self.host.max().item()
""")  # fmt: skip
right("async-copy", "an event is waited for before the list is read", """
    import torch
    def down(tensors):
        copies = [t.to("cpu", non_blocking=True) for t in tensors]
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
        return [c.numpy() for c in copies]
""")  # fmt: skip
right("async-copy", "a helper waits", """
    import torch
    class Mover:
        def settle(self):
            torch.cuda.synchronize()
        def down(self, tensors):
            copies = [t.to("cpu", non_blocking=True) for t in tensors]
            self.settle()
            return [c.numpy() for c in copies]
""")  # fmt: skip
fault("async-copy", "options of the copy in a dict", """
    import torch
    from torch.utils.data import DataLoader
    def train(model, rows, opt, device):
        how = dict(device=device, non_blocking=True)
        loader = DataLoader(rows, batch_size=32, shuffle=True)
        for x, y in loader:
            x, y = x.to(**how), y.to(**how)  # <-
            loss = model(x, y)
            loss.backward()
            opt.step()
""")  # fmt: skip
fault("async-copy", "a loader whose options do not pin", """
    import torch
    from torch.utils.data import DataLoader
    OPTIONS = {"batch_size": 16, "num_workers": 2}
    def batches(rows, device):
        for batch in DataLoader(rows, **OPTIONS):
            yield batch.to(device, non_blocking=True)  # <-
""")  # fmt: skip
right("async-copy", "a loader whose options pin", """
    import torch
    from torch.utils.data import DataLoader
    OPTIONS = {"batch_size": 16, "pin_memory": True}
    def batches(rows, device):
        for batch in DataLoader(rows, **OPTIONS):
            yield batch.to(device, non_blocking=True)
""")  # fmt: skip
fault("async-copy", "the side stream waits for the main one only", """
    import torch
    class Ahead:
        def __init__(self, loader):
            self.it, self.side = iter(loader), torch.cuda.Stream()
        def fetch(self):
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self.batch = next(self.it).cuda(non_blocking=True)  # <-
        def __next__(self):
            batch = self.batch
            self.fetch()
            return batch
""")  # fmt: skip
right("async-copy", "the main stream waits for the side one", """
    import torch
    class Ahead:
        def __init__(self, loader):
            self.it, self.side = iter(loader), torch.cuda.Stream()
        def fetch(self):
            with torch.cuda.stream(self.side):
                self.batch = next(self.it).cuda(non_blocking=True)
        def __next__(self):
            torch.cuda.current_stream().wait_stream(self.side)
            batch = self.batch
            batch.record_stream(torch.cuda.current_stream())
            self.fetch()
            return batch
""")  # fmt: skip
fault("async-copy", "a function made by partial", """
    import functools, torch
    from torch.utils.data import DataLoader
    send = functools.partial(torch.Tensor.to, device="cuda", non_blocking=True)
    def run(rows, model):
        for x in DataLoader(rows, batch_size=8):
            model(send(x))  # <-
""")  # fmt: skip
right("async-copy", "a function made by partial, of pinned rows", """
    import functools, torch
    from torch.utils.data import DataLoader
    send = functools.partial(torch.Tensor.to, device="cuda", non_blocking=True)
    def run(rows, model):
        for x in DataLoader(rows, batch_size=8, pin_memory=True):
            model(send(x))
""")  # fmt: skip

# --- device-string ----------------------------------------------------------------------------------------------------
fault("device-string", "among texts with a number", """
    import torch
    def pick(rank):
        device = torch.device("cuda", rank)
        return device in ("cuda", f"cuda:{rank}")  # <-
""")  # fmt: skip
fault("device-string", "one by one with any()", """
    import torch
    def fast(x):
        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        return any(device == kind for kind in ("cuda", "mps"))  # <-
""")  # fmt: skip
fault("device-string", "a frozen set of kinds", """
    import torch
    KINDS = frozenset({"cuda", "mps"})
    def fast(device: torch.device):
        return device in KINDS  # <-
""")  # fmt: skip
fault("device-string", "joined with the rank", """
    import torch
    def mine(model, rank):
        return next(model.parameters()).device == "cuda:" + str(rank)  # <-
""")  # fmt: skip
right("device-string", "the text of a device against one with a number", """
    import torch
    def mine(model, rank):
        return str(next(model.parameters()).device) == f"cuda:{rank}"
""")  # fmt: skip

# --- compile ----------------------------------------------------------------------------------------------------------
fault("compile", "a function draws the size of the pictures", """
    import random, torch
    import torch.nn.functional as F
    def side(seed, step):
        return random.Random(seed + step).randrange(24, 65, 4)
    def main(net, opt, batches):
        model = torch.compile(net)  # <-
        for step, x in enumerate(batches):
            s = side(7, step)
            size = (s, s)
            loss = model(F.interpolate(x, size=size)).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "a schedule of lengths", """
    import torch
    def length_at(step, longest):
        return min(longest, 64 + step // 100)
    def main(net, opt, rows):
        model = torch.compile(net)  # <-
        for step in range(10000):
            length = length_at(step, 1024)
            x, y = rows.batch(step, length)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "a lambda that runs the model", """
    import random, torch
    from torch.func import functional_call
    def main(net, params, opt, rows):
        forward = torch.compile(lambda p, x: functional_call(net, p, (x,)))  # <-
        for step in range(1000):
            width = random.choice(range(64, 1024, 8))
            loss = forward(params, rows.batch(step, width)).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "a random tensor of one shape", """
    import torch
    def main(net, opt, device):
        model = torch.compile(net)
        for step in range(1000):
            seq = torch.randint(0, 512, (8, 128), device=device)
            loss = model(seq).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip

# --- eval-mode --------------------------------------------------------------------------------------------------------
LIGHTNING = """
    import lightning as L
    import torch
    class Tuner(L.LightningModule):
        def training_step(self, batch, number):
            return self.net(**batch).loss
        def switch(self, learning):
            BODY
        def on_train_batch_end(self, outputs, batch, number):
            if number % 100 == 0:
                self.show()
        @torch.no_grad()
        def show(self):
            self.switch(False)  # MARK
            self.print(self.net.generate(self.prompt, max_new_tokens=8))
            AFTER
"""


def lightning(body: str, after: str, mark: str = "<-") -> str:
    return LIGHTNING.replace("BODY", body).replace("AFTER", after).replace("MARK", mark)


fault("eval-mode", "a switch that is turned off and never on", lightning("self.net.train(learning)", "pass"))
fault("eval-mode", "a switch with a test", lightning(
    "self.net.train() if learning else self.net.eval()", "pass"))  # fmt: skip
right("eval-mode", "a switch that is turned on again", lightning(
    "self.net.train(learning)", "self.switch(True)", "off"))  # fmt: skip
right("eval-mode", "each module's own flag is put back", """
    import contextlib, torch
    @contextlib.contextmanager
    def evaluating(model):
        before = {m: m.training for m in model.modules()}
        model.eval()
        try:
            yield
        finally:
            for m, flag in before.items():
                m.training = flag
    def train(model, opt, batches, held_out):
        for step, x in enumerate(batches):
            loss = model(x).mean()
            loss.backward()
            opt.step()
            if step % 100 == 0:
                with evaluating(model), torch.no_grad():
                    print(sum(model(v).mean() for v in held_out))
""")  # fmt: skip

# --- recast -----------------------------------------------------------------------------------------------------------
fault("recast", "two outputs by short names", """
    import torch.nn.functional as F
    def loss_of(student, teacher, ids, targets):
        a, b = student(ids), teacher(ids)
        a, b = a.float(), b.float()  # <-
        return F.cross_entropy(a.flatten(0, 1), targets) + F.kl_div(F.log_softmax(a, -1), F.softmax(b, -1))
""")  # fmt: skip
fault("recast", "the output's field", """
    import torch.nn.functional as F
    def loss_of(model, ids, targets):
        z = model(ids).logits[:, :-1].float()  # <-
        return F.cross_entropy(z.flatten(0, 1), targets.flatten())
""")  # fmt: skip
fault("recast", "both in one generator", """
    import torch.nn.functional as F
    def loss_of(student, teacher, ids, targets):
        s, t = student(ids), teacher(ids)
        s, t = (z.float() for z in (s, t))  # <-
        return F.cross_entropy(s.flatten(0, 1), targets) + F.mse_loss(s, t)
""")  # fmt: skip
right("recast", "vectors of a picture and a text", """
    import torch.nn.functional as F
    def contrast(model, pictures, texts, targets):
        a, b = model(pictures), model(texts)
        a, b = a.float(), b.float()
        alike = a @ b.T
        return F.cross_entropy(alike, targets)
""")  # fmt: skip
right("recast", "one part at a time", """
    import torch.nn.functional as F
    def loss_of(head, hidden, targets, parts):
        total = hidden.new_zeros(())
        for h, t in zip(hidden.chunk(parts), targets.chunk(parts)):
            total = total + F.cross_entropy(head(h).float(), t, reduction="sum")
        return total / targets.numel()
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in FAMILIES.variants])
def test_each_writing_of_a_fault_of_training_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
