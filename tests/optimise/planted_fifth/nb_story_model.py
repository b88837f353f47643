# %% [markdown]
# # A story model from scratch
# Train a 10M parameter GPT-2 on TinyStories for a few minutes and look at what it writes.

# %%
from itertools import chain

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from datasets import load_dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

device = "cuda"
torch.manual_seed(0)

# %%
tok = AutoTokenizer.from_pretrained("gpt2")
ds = load_dataset("roneneldan/TinyStories")
train_text = ds["train"].select(range(100_000))["text"]
val_text = ds["validation"].select(range(4_000))["text"]


def to_stream(texts):
    enc = tok(texts)["input_ids"]
    return torch.tensor(list(chain.from_iterable(e + [tok.eos_token_id] for e in enc)))


train_ids, val_ids = to_stream(train_text), to_stream(val_text)
print(len(train_ids), len(val_ids))

# %%
block, batch = 256, 64
gen = torch.Generator().manual_seed(0)


def get_batch(ids):
    starts = torch.randint(0, len(ids) - block, (batch, 1), generator=gen)
    return ids[starts + torch.arange(block)].to(device)


# %%
config = GPT2Config(n_layer=6, n_head=8, n_embd=256, n_positions=512, resid_pdrop=0.1, attn_pdrop=0.1)
net = GPT2LMHeadModel(config).to(device)
model = torch.compile(net)
optim = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
print(f"{net.num_parameters() / 1e6:.1f}M")


# %%
@torch.no_grad()
def val_loss(n=20):
    net.eval()
    total = torch.zeros((), device=device)
    for _ in range(n):
        ids = get_batch(val_ids)
        total += model(ids, labels=ids).loss
    return (total / n).item()


history = []
net.train()
for step in range(1500):
    ids = get_batch(train_ids)
    loss = model(ids, labels=ids).loss
    loss.backward()
    optim.step()
    optim.zero_grad(set_to_none=True)
    if step % 100 == 0:
        history.append((step, loss.item(), val_loss()))
        print("step %d train %.3f val %.3f" % history[-1])

# %%
steps, tr, va = zip(*history)
plt.plot(steps, tr, label="train")
plt.plot(steps, va, label="val")
plt.legend()
plt.show()


# %% [markdown]
# ## Sampling

# %%
@torch.inference_mode()
def stories(prompt, num_stories=8, length=200, temperature=0.9):
    net.eval()
    ids = tok(prompt, return_tensors="pt").input_ids.to(device)
    ids = ids.repeat(num_stories, 1)
    out = net(ids, use_cache=True)
    probs = F.softmax(out.logits[:1, -1] / temperature, dim=-1)
    cur = torch.multinomial(probs, num_samples=1).repeat(num_stories, 1)
    pieces = [ids, cur]
    for _ in range(length - 1):
        out = net(cur, past_key_values=out.past_key_values, use_cache=True)
        probs = F.softmax(out.logits[:, -1] / temperature, dim=-1)
        cur = torch.multinomial(probs, num_samples=1)
        pieces.append(cur)
    return tok.batch_decode(torch.cat(pieces, dim=1))


for s in stories("Once upon a time there was"):
    print(s.split("<|endoftext|>")[0])
    print("-" * 80)
