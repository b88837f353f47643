"""Command-line story writer; the network is any module that maps ids to logits."""
import argparse
import sys

import torch


class StoryBot:
    def __init__(self, network, vocab, device):
        self.network = network.to(device).eval()
        self.vocab = vocab
        self.device = device
        self.transcript = []

    def _scores(self):
        window = torch.as_tensor(self.transcript, device=self.device).unsqueeze(0)
        return self.network(window)[0, -1]

    def _pick(self, heat):
        scores = self._scores()
        return torch.multinomial(torch.softmax(scores / heat, 0), 1).item()

    @torch.inference_mode()
    def tell(self, opening, words, heat=0.9):
        self.transcript = list(self.vocab.encode(opening))
        remaining = words
        while remaining > 0:
            token = self._pick(heat)
            self.transcript.append(token)
            sys.stdout.write(self.vocab.decode([token]))
            remaining -= 1
        return self.vocab.decode(self.transcript)


def main():
    cli = argparse.ArgumentParser()
    cli.add_argument("--opening", default="Once upon a time")
    cli.add_argument("--words", type=int, default=200)
    args = cli.parse_args()
    print(args)


if __name__ == "__main__":
    main()
