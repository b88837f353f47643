"""Beam search for the report-writing decoder."""
from dataclasses import dataclass

import torch


@dataclass
class Hypothesis:
    tokens: list
    score: float


class BeamDecoder:
    def __init__(self, model, bos_id, eos_id, beams=5, length_penalty=0.8):
        self.model = model.eval()
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.beams = beams
        self.length_penalty = length_penalty

    def _next_scores(self, memory, seqs):
        logits = self.model(seqs, memory=memory)
        logp = torch.log_softmax(logits.float(), dim=-1)
        return logp[:, -1]

    def _freeze_finished(self, logp, finished):
        """A finished beam may only repeat the end token, at no cost."""
        only_eos = torch.full_like(logp, float("-inf"))
        only_eos[:, self.eos_id] = 0.0
        return torch.where(finished.unsqueeze(1), only_eos, logp)

    def _advance(self, seqs, scores, finished, logp):
        vocab = logp.size(-1)
        flat = (scores.unsqueeze(1) + logp).view(-1)
        scores, index = flat.topk(self.beams)
        beam = torch.div(index, vocab, rounding_mode="floor")
        token = index % vocab
        seqs = torch.cat((seqs[beam], token.unsqueeze(1)), dim=1)
        finished = finished[beam] | (token == self.eos_id)
        return seqs, scores, finished

    @torch.inference_mode()
    def search(self, memory, max_len):
        """memory: (1, S, D) encoder states of one study."""
        if max_len > self.model.max_len:
            raise ValueError(f"max_len {max_len} is above the decoder's {self.model.max_len}")
        device = memory.device
        memory = memory.expand(self.beams, -1, -1)
        seqs = torch.full((self.beams, 1), self.bos_id, dtype=torch.long, device=device)
        scores = torch.full((self.beams,), float("-inf"), device=device)
        scores[0] = 0.0
        finished = torch.zeros(self.beams, dtype=torch.bool, device=device)
        for _ in range(max_len - 1):
            logp = self._freeze_finished(self._next_scores(memory, seqs), finished)
            seqs, scores, finished = self._advance(seqs, scores, finished, logp)
        return self._collect(seqs, scores)

    def _collect(self, seqs, scores):
        hyps = []
        for row, score in zip(seqs.tolist(), scores.tolist()):
            body = row[1:]
            if self.eos_id in body:
                body = body[: body.index(self.eos_id)]
            hyps.append(Hypothesis(body, score / max(len(body), 1) ** self.length_penalty))
        return sorted(hyps, key=lambda h: h.score, reverse=True)


def write_report(encoder, decoder, tokenizer, image, max_len=200):
    encoder.eval()
    with torch.inference_mode():
        memory = encoder(image.unsqueeze(0))
    best = decoder.search(memory, max_len)[0]
    return tokenizer.decode(best.tokens)
