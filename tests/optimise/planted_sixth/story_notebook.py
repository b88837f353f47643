# %% [markdown]
# # Stories from a 15M model

# %%
import json

import torch
from torch.nn import functional as F

from tinystories.model import StoryModel
from tinystories.bpe import BPE

device = torch.device("cuda:0")

# %%
with open("config.json") as f:
    conf = json.load(f)
bpe = BPE("vocab.bpe")
model = StoryModel(**conf)
model.load_state_dict(torch.load("story15m.pt", map_location="cpu", weights_only=True))
model.to(device)
model.eval()
print(sum(p.numel() for p in model.parameters()) / 1e6, "M parameters")


# %%
def nucleus(logits, p=0.9):
    vals, idx = logits.sort(descending=True)
    probs = vals.softmax(-1)
    probs[probs.cumsum(-1) - probs > p] = 0
    return idx.gather(-1, torch.multinomial(probs, 1))


def start_tokens(prompt, n):
    """Prompt rows with their first sampled token."""
    row = torch.tensor(bpe.encode(prompt), device=device)
    rows = row.repeat(n, 1)
    with torch.no_grad():
        logits = model(rows)[:, -1]
    first = nucleus(logits[0])
    firsts = torch.full((n, 1), int(first), device=device)
    return torch.cat([rows, firsts], 1)


# %%
def next_logits(seq, temperature):
    return model(seq)[:, -1] / temperature


@torch.no_grad()
def tell(prompt, n=4, length=300, temperature=0.8):
    seq = start_tokens(prompt, n)
    assert seq.shape[1] + length <= conf["context"], "story is too long"
    while seq.shape[1] < length:
        tok = nucleus(next_logits(seq, temperature))
        seq = torch.cat([seq, tok], dim=1)
    return [bpe.decode(r) for r in seq.tolist()]


# %%
for story in tell("Lily found a red ball", n=4):
    print(story)
    print("-" * 40)


# %%
@torch.no_grad()
def perplexity(texts):
    total = torch.zeros((), device=device)
    count = 0
    for t in texts:
        ids = torch.tensor([bpe.encode(t)], device=device)
        logits = model(ids[:, :-1])
        total += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum")
        count += ids.shape[1] - 1
    return (total / count).exp().item()


# %%
with open("valid.txt") as f:
    valid = f.read().split("<|endoftext|>")[:200]
valid = [t for t in valid if 1 < len(bpe.encode(t)) <= conf["context"]]
print("ppl", perplexity(valid))
