"""Distils a big LM into a small one on fixed-length packed rows."""
import io
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

from zoo import load_student, load_teacher


class Rows:
    def __init__(self, root, length, batch, seed):
        self.tokens = np.load(f"{root}/tokens.npy", mmap_mode="r").reshape(-1, length)
        self.answer = np.load(f"{root}/answer.npy", mmap_mode="r").reshape(-1, length)
        self.batch, self.seed = batch, seed
        self.epoch, self.order = -1, None

    def at(self, step):
        per_epoch = len(self.tokens) // self.batch
        epoch, i = divmod(step, per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self.epoch, self.order = epoch, rng.permutation(len(self.tokens))
        pick = np.sort(self.order[i * self.batch:(i + 1) * self.batch])
        ids = torch.from_numpy(self.tokens[pick].astype(np.int64))
        where = torch.from_numpy(np.flatnonzero(self.answer[pick][:, 1:]))
        return ids.pin_memory(), where.pin_memory()


class Keeper:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def put(self, **parts):
        blob = io.BytesIO()
        torch.save({k: v if isinstance(v, int) else v.state_dict() for k, v in parts.items()},
                   blob)
        self.path.write_bytes(blob.getvalue())

    def restore(self, student, opt):
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cuda", weights_only=True)
        student.load_state_dict(state["student"])
        opt.load_state_dict(state["opt"])
        return state["step"]


def distil_loss(student, teacher, ids, where, temp, mix):
    with torch.no_grad():
        t = teacher(ids)
    s = student(ids)
    t, s = t.float(), s.float()
    s, t = (z[:, :-1].flatten(0, 1)[where] for z in (s, t))
    y = ids[:, 1:].flatten()[where]
    soft = F.kl_div(F.log_softmax(s / temp, -1), F.log_softmax(t / temp, -1),
                    log_target=True, reduction="batchmean")
    return mix * temp**2 * soft + (1 - mix) * F.cross_entropy(s, y)


def main(steps=30_000, save_every=1_000):
    torch.manual_seed(0)
    teacher = load_teacher().to("cuda", torch.bfloat16).eval().requires_grad_(False)
    student = load_student().cuda().train()
    opt = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    keeper = Keeper("runs/distil/last.pt")
    start = keeper.restore(student, opt)
    fast_student, fast_teacher = torch.compile(student), torch.compile(teacher)
    rows = Rows("data/distil", length=1024, batch=24, seed=0)
    for step in range(start, steps):
        ids, where = (x.cuda(non_blocking=True) for x in rows.at(step))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = distil_loss(fast_student, fast_teacher, ids, where, temp=2.0, mix=0.7)
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(step, f"{loss.item():.4f}")
        if (step + 1) % save_every == 0:
            keeper.put(student=student, opt=opt, step=step + 1)


if __name__ == "__main__":
    main()
