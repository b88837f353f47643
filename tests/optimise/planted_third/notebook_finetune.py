#!/usr/bin/env python
# coding: utf-8

# # Finetuning GPT-2 on recipes
# Exported from `finetune.ipynb`

# In[1]:


import random

import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

device = "cuda"
torch.manual_seed(42)


# In[2]:


df = pd.read_csv("recipes.csv")
df["text"] = df.title + "\n" + df.ingredients + "\n" + df.steps
df.text.str.len().describe()


# In[3]:


tokenizer = GPT2TokenizerFast.from_pretrained("gpt2")
encoded = [tokenizer(t + tokenizer.eos_token).input_ids for t in df.text]
kept = [torch.tensor(e) for e in encoded if len(e) <= 1024]
print(len(encoded) - len(kept), "recipes over 1024 tokens dropped")

random.Random(42).shuffle(kept)
val_rows, train_rows = kept[:500], kept[500:]


# In[4]:


def batches(rows, size):
    for i in range(0, len(rows), size):
        chunk = rows[i:i + size]
        ids = pad_sequence(chunk, batch_first=True, padding_value=tokenizer.eos_token_id)
        labels = pad_sequence(chunk, batch_first=True, padding_value=-100)
        yield ids.to(device), labels.to(device)


# In[5]:


model = GPT2LMHeadModel.from_pretrained("gpt2").to(device)
opt = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.01)


# In[6]:


def val_loss():
    total, n = torch.zeros((), device=device), 0
    for ids, labels in batches(val_rows, 16):
        total += model(ids, labels=labels).loss
        n += 1
    return (total / n).item()


# In[7]:


model.train()
for epoch in range(3):
    random.Random(epoch).shuffle(train_rows)
    running, n = torch.zeros((), device=device), 0
    for ids, labels in tqdm(batches(train_rows, 16), total=len(train_rows) // 16):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(ids, labels=labels).loss
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        running += loss.detach()
        n += 1
    print(f"epoch {epoch}  train {(running / n).item():.3f}  val {val_loss():.3f}")


# In[8]:


model.eval()
prompt = tokenizer("Lemon tart\n", return_tensors="pt").to(device)
with torch.no_grad():
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=200, do_sample=True)[0]))
