"""Greedy transcription with an encoder-decoder speech model."""
import dataclasses
import sys
from typing import List

import torch
import torch.nn.functional as F
import torchaudio

from speechnet import SpeechNet, Vocab

SR = 16_000
WINDOW = 30 * SR


@dataclasses.dataclass
class Options:
    max_tokens: int = 224
    language: str = "en"
    suppress_blank: bool = True


class Frontend:
    def __init__(self, device: torch.device):
        self.mel = torchaudio.transforms.MelSpectrogram(SR, n_fft=400, hop_length=160, n_mels=80).to(device)

    def __call__(self, wav: torch.Tensor) -> torch.Tensor:
        m = self.mel(wav).clamp_min(1e-10).log10()
        peak = m.amax(dim=(-2, -1), keepdim=True)
        return (torch.maximum(m, peak - 8.0) + 4.0) / 4.0


class GreedyDecoder:
    def __init__(self, net: SpeechNet, vocab: Vocab, opts: Options):
        self.net, self.vocab, self.opts = net, vocab, opts
        self.net.eval()

    def _score_next(self, prefix, memory):
        return self.net.decoder(prefix, memory)[:, -1]

    @torch.inference_mode()
    def run(self, mel: torch.Tensor) -> List[List[int]]:
        memory = self.net.encoder(mel)
        n = mel.shape[0]
        prefix = torch.tensor([self.vocab.start(self.opts.language)], device=mel.device).expand(n, -1)
        texts: List[List[int]] = [[] for _ in range(n)]
        alive = [True] * n
        for i in range(self.opts.max_tokens):
            scores = self._score_next(prefix, memory)
            if i == 0 and self.opts.suppress_blank:
                scores[:, self.vocab.blank] = float("-inf")
            best = scores.argmax(-1)
            for row, token in enumerate(best.tolist()):
                if token == self.vocab.eot:
                    alive[row] = False
                elif alive[row]:
                    texts[row].append(token)
            if not any(alive):
                break
            prefix = torch.cat([prefix, best[:, None]], 1)
        return texts


def half_if_possible(net: SpeechNet, where: torch.device) -> SpeechNet:
    match where:
        case "cuda":
            return net.half()
        case _:
            return net


def windows(path: str) -> torch.Tensor:
    wav, sr = torchaudio.load(path)
    wav = torchaudio.functional.resample(wav.mean(0), sr, SR)
    # the encoder has fixed positions for exactly 30 s
    wav = F.pad(wav, (0, -len(wav) % WINDOW))
    return wav.view(-1, WINDOW)


def main(paths: List[str]) -> None:
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = half_if_possible(SpeechNet.pretrained("medium").to(where), where)
    vocab = Vocab.pretrained("medium")
    front = Frontend(where)
    decoder = GreedyDecoder(net, vocab, Options())
    dtype = next(net.parameters()).dtype
    for p in paths:
        mel = front(windows(p).to(where)).to(dtype)
        ids = decoder.run(mel)
        print(p, " ".join(vocab.decode(t) for t in ids), sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
