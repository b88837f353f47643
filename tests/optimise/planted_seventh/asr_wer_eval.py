"""Word error rate of a small speech transformer on pre-cut 10 s segments.

Segments are stored as float16 log-mel arrays of identical shape (80 x 1000), so
batches need no padding.
"""
import argparse
import csv
import pathlib

import jiwer
import numpy as np
import sentencepiece as spm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

BOS, EOS = 1, 2
MAX_TOKENS = 96


class MelSegments(Dataset):
    def __init__(self, root):
        self.root = pathlib.Path(root)
        with open(self.root / "segments.tsv", newline="") as fh:
            self.items = list(csv.DictReader(fh, delimiter="\t"))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        it = self.items[k]
        mel = torch.from_numpy(np.load(self.root / "mel" / (it["id"] + ".npy")))
        return mel, it["text"]


class SpeechTransformer(nn.Module):
    def __init__(self, n_vocab, width=512, enc_layers=8, dec_layers=6, heads=8):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(80, width, 3, padding=1), nn.GELU(),
            nn.Conv1d(width, width, 3, stride=2, padding=1), nn.GELU(),
        )
        self.enc_pos = nn.Parameter(torch.zeros(500, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True)
        self.enc = nn.TransformerEncoder(layer, enc_layers, enable_nested_tensor=False)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True)
        self.dec = nn.TransformerDecoder(layer, dec_layers)
        self.emb = nn.Embedding(n_vocab, width)
        self.dec_pos = nn.Parameter(torch.zeros(MAX_TOKENS, width))
        self.out = nn.Linear(width, n_vocab)

    def encode(self, mel):
        return self.enc(self.conv(mel).transpose(1, 2) + self.enc_pos)

    def decode(self, toks, memory):
        n = toks.size(1)
        causal = nn.Transformer.generate_square_subsequent_mask(n, device=toks.device, dtype=memory.dtype)
        h = self.dec(self.emb(toks) + self.dec_pos[:n], memory, tgt_mask=causal, tgt_is_causal=True)
        return self.out(h[:, -1])


class GreedyTranscriber:
    def __init__(self, net):
        self.net = net.eval()
        self.encode = torch.compile(net.encode)
        self.decode = torch.compile(net.decode, dynamic=True)

    @torch.inference_mode()
    def __call__(self, mel):
        memory = self.encode(mel)  # computed once per utterance
        toks = torch.full((mel.size(0), MAX_TOKENS), EOS, dtype=torch.long, device=mel.device)
        toks[:, 0] = BOS
        done = torch.zeros(mel.size(0), dtype=torch.bool, device=mel.device)
        for n in range(1, MAX_TOKENS):
            best = self.decode(toks[:, :n], memory).argmax(-1)
            toks[:, n] = torch.where(done, toks.new_full((), EOS), best)
            done |= best == EOS
            if n % 24 == 0 and bool(done.all()):
                break
        return toks


def detok(sp, rows):
    texts = []
    for row in rows:
        ids = [int(t) for t in row[1:]]
        texts.append(sp.decode(ids[:ids.index(EOS)] if EOS in ids else ids))
    return texts


def run(args):
    device = torch.device("cuda")
    sp = spm.SentencePieceProcessor(model_file=args.spm)
    net = SpeechTransformer(sp.vocab_size())
    net.load_state_dict(torch.load(args.weights, map_location="cpu", weights_only=True))
    transcribe = GreedyTranscriber(net.to(device, torch.float16))

    loader = DataLoader(MelSegments(args.data), batch_size=args.batch_size, num_workers=8)
    refs, hyps = [], []
    for mel, text in loader:
        mel = mel.to(device, non_blocking=True)
        toks = transcribe(mel)
        hyps += detok(sp, toks.cpu().numpy())
        refs += text
    print(f"WER {100 * jiwer.wer(refs, hyps):.2f}  ({len(refs)} segments)")
    if args.dump:
        with open(args.dump, "w") as fh:
            for r, h in zip(refs, hyps):
                fh.write(f"{r}\t{h}\n")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("data")
    ap.add_argument("--weights", required=True)
    ap.add_argument("--spm", required=True)
    ap.add_argument("--batch-size", type=int, default=128)
    ap.add_argument("--dump")
    run(ap.parse_args())
