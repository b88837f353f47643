"""CTC acoustic model on variable-length utterances."""
import argparse
import pathlib

import torch
import torchaudio
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

LABELS = " 'abcdefghijklmnopqrstuvwxyz"
CHAR = {c: i + 1 for i, c in enumerate(LABELS)}


class Collate:
    def __init__(self):
        self.mel = torchaudio.transforms.MelSpectrogram(16_000, n_fft=400, hop_length=160, n_mels=80)

    def __call__(self, items):
        feats, texts = [], []
        for wave, rate, text, *_ in items:
            feats.append(self.mel(wave[0]).clamp_min(1e-5).log().T)
            texts.append(torch.tensor([CHAR[c] for c in text.lower() if c in CHAR]))
        n_feat = torch.tensor([len(f) for f in feats])
        n_text = torch.tensor([len(t) for t in texts])
        return pad_sequence(feats, batch_first=True), n_feat, torch.cat(texts), n_text


class Acoustic(nn.Module):
    def __init__(self, width=512, depth=8):
        super().__init__()
        self.front = nn.Conv1d(80, width, 5, stride=2, padding=2)
        self.mix = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 15, padding=7, groups=width), nn.BatchNorm1d(width),
                nn.Conv1d(width, 2 * width, 1), nn.GLU(dim=1), nn.Dropout(0.1),
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, len(LABELS) + 1)

    def forward(self, mel):
        x = self.front(mel.transpose(1, 2))
        for layer in self.mix:
            x = x + layer(x)
        return self.head(x.transpose(1, 2)).log_softmax(-1)


def build(device):
    net = Acoustic().to(device)
    fast = torch.compile(net, mode="reduce-overhead", dynamic=False)
    return net, fast


def store(path, net, opt, sched, epoch):
    torch.save(
        {
            "net": net.state_dict(), "opt": opt.state_dict(), "sched": sched.state_dict(), "epoch": epoch,
            "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state(),
        },
        path,
    )


def fit(args):
    device = torch.device("cuda")
    torch.manual_seed(args.seed)
    data = torchaudio.datasets.LIBRISPEECH(args.root, url="train-clean-360")
    net, fast = build(device)
    opt = torch.optim.AdamW(net.parameters(), lr=args.lr)
    sched = torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.97)
    ctc = nn.CTCLoss(zero_infinity=True)
    last = pathlib.Path(args.out) / "last.pt"
    begin = 0
    if last.exists():
        was = torch.load(last, map_location="cpu", weights_only=True)
        net.load_state_dict(was["net"])
        opt.load_state_dict(was["opt"])
        sched.load_state_dict(was["sched"])
        torch.set_rng_state(was["rng"])
        torch.cuda.set_rng_state(was["cuda_rng"])
        begin = was["epoch"] + 1

    for epoch in range(begin, args.epochs):
        order = torch.Generator().manual_seed(args.seed + epoch)
        loader = DataLoader(data, batch_size=48, shuffle=True, generator=order, num_workers=8,
                            collate_fn=Collate(), pin_memory=True, drop_last=True)
        bar = tqdm(loader, desc=f"epoch {epoch}")
        for mel, n_mel, text, n_text in bar:
            logp = fast(mel.to(device, non_blocking=True))
            loss = ctc(logp.transpose(0, 1), text.to(device, non_blocking=True), (n_mel + 1) // 2, n_text)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        sched.step()
        store(last, net, opt, sched, epoch)


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--root", default="/data/librispeech")
    ap.add_argument("--out", default="runs/ctc")
    ap.add_argument("--lr", type=float, default=3e-4)
    ap.add_argument("--epochs", type=int, default=60)
    ap.add_argument("--seed", type=int, default=3)
    fit(ap.parse_args())
