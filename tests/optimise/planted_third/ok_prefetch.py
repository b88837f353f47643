"""Host-to-device feed through a ring of pinned buffers guarded by events."""
import numpy as np
import torch


class PinnedRing:
    def __init__(self, shape, dtype, device, depth=3):
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.slots = [torch.empty(shape, dtype=dtype, pin_memory=self.cuda)
                      for _ in range(depth)]
        self.events = [torch.cuda.Event() if self.cuda else None for _ in range(depth)]
        self.turn = 0

    def send(self, array):
        i, self.turn = self.turn, (self.turn + 1) % len(self.slots)
        if not self.cuda:
            return torch.from_numpy(np.array(array))
        self.events[i].synchronize()
        self.slots[i].copy_(torch.from_numpy(array))
        out = self.slots[i].to(self.device, non_blocking=True)
        self.events[i].record()
        return out


class ResultFetcher:
    """Device-to-host copies that are read only once they have landed."""

    def __init__(self, shape, dtype):
        self.host = torch.empty(shape, dtype=dtype, pin_memory=True)
        self.landed = torch.cuda.Event()

    def start(self, tensor):
        self.host.copy_(tensor, non_blocking=True)
        self.landed.record()

    def read(self):
        self.landed.synchronize()
        return self.host.numpy().copy()


@torch.inference_mode()
def score_file(model, path, width=1024, batch=4096, device="cuda"):
    model = model.to(device).eval()
    data = np.memmap(path, dtype=np.float32, mode="r").reshape(-1, width)
    ring = PinnedRing((batch, width), torch.float32, device)
    scores = torch.empty(len(data) // batch, batch, device=device)
    for i in range(len(scores)):
        x = ring.send(np.ascontiguousarray(data[i * batch:(i + 1) * batch]))
        scores[i] = model(x).squeeze(-1)
    tail = data[len(scores) * batch:]
    rest = [model(torch.from_numpy(np.array(tail)).to(device)).squeeze(-1)] if len(tail) else []
    return torch.cat([scores.flatten(), *rest]).cpu().numpy()


if __name__ == "__main__":
    net = torch.nn.Sequential(torch.nn.Linear(1024, 256), torch.nn.ReLU(),
                              torch.nn.Linear(256, 1))
    net.load_state_dict(torch.load("scorer.pt", weights_only=True))
    np.save("scores.npy", score_file(net, "features.f32"))
