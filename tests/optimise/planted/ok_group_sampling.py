"""A group of answers per question; each row draws its own first token."""
import torch


def draw(scores, temperature):
    if temperature == 0:
        return scores.argmax(-1, keepdim=True)
    return torch.multinomial((scores / temperature).softmax(-1), 1)


class Group:
    def __init__(self, lm, size):
        self.lm = lm
        self.size = size

    @torch.inference_mode()
    def sample(self, ids, length, temperature=1.0):
        scores, past = self.lm.prefill(ids)
        past = past.repeat(self.size)
        # widen the scores, then draw: rows differ
        token = draw(scores[:, -1].expand(self.size, -1), temperature)
        rows = [token]
        for _ in range(length - 1):
            scores, past = self.lm.decode(token, past)
            token = draw(scores[:, -1], temperature)
            rows.append(token)
        return torch.cat(rows, 1)

    @torch.inference_mode()
    def first_tokens(self, ids, temperature):
        scores, _ = self.lm.prefill(ids)
        return torch.multinomial((scores[0, -1] / temperature).softmax(-1), self.size, replacement=True)


@torch.inference_mode()
def greedy_twins(lm, ids, n):
    """Greedy start: the rows are meant to be equal."""
    scores, past = lm.prefill(ids)
    return scores[:, -1].argmax(-1, keepdim=True).repeat(n, 1), past.repeat(n)


def majority(answers):
    return max(set(answers), key=answers.count)
