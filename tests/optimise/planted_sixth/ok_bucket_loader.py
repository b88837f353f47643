import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler


class BucketSampler(Sampler):
    def __init__(self, lengths, max_tokens=16384, seed=0):
        self.lengths = np.asarray(lengths)
        self.seed, self.epoch, self.done = seed, 0, 0
        self.batches, cur = [], []
        for i in np.argsort(self.lengths, kind="stable").tolist():
            if cur and self.lengths[i] * (len(cur) + 1) > max_tokens:
                self.batches.append(cur)
                cur = []
            cur.append(i)
        if cur:
            self.batches.append(cur)

    def set_state(self, epoch, done=0):
        self.epoch, self.done = epoch, done

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.batches))
        for b in order[self.done :]:
            yield self.batches[b]

    def __len__(self):
        return len(self.batches) - self.done


def collate(items):
    src = pad_sequence([torch.as_tensor(s) for s, _ in items], batch_first=True)
    tgt = pad_sequence([torch.as_tensor(t) for _, t in items], batch_first=True)
    return src, tgt


def make_loader(dataset, lengths, seed, epoch, done=0):
    sampler = BucketSampler(lengths, seed=seed)
    sampler.set_state(epoch, done)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate,
                      num_workers=4, pin_memory=True)
