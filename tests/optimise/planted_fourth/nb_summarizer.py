#!/usr/bin/env python
# coding: utf-8

# # Summarising clinical guidelines
# Prepares packed rows for the adaptation run and tries the base model on a few articles.

# In[1]:


import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "mistralai/Mistral-7B-Instruct-v0.3"
DATA = Path("data/guidelines.jsonl")
ROW = 4096

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.bfloat16, device_map="cuda")
model.eval()


# In[2]:


articles = [json.loads(line) for line in DATA.open(encoding="utf-8")]
print(len(articles), "articles")
encoded = [tokenizer(a["body"])["input_ids"] + [tokenizer.eos_token_id] for a in articles]
lengths = np.array([len(e) for e in encoded])
print("tokens:", lengths.sum(), "longest:", lengths.max())


# ## Pack the articles into rows

# In[3]:


def first_fit(docs, size):
    bins = []
    for doc in docs:
        for b in bins:
            if sum(len(d) for d in b) + len(doc) <= size:
                b.append(doc)
                break
        else:
            bins.append([doc])
    return bins


pieces = [e[i : i + ROW] for e in encoded for i in range(0, len(e), ROW)]
bins = first_fit(sorted(pieces, key=len, reverse=True), ROW)
rows = np.full((len(bins), ROW), tokenizer.eos_token_id, dtype=np.int32)
for r, b in enumerate(bins):
    flat = np.concatenate(b)
    rows[r, : len(flat)] = flat
np.save("data/guidelines_rows.npy", rows)
print(f"{len(rows)} rows, {lengths.sum() / rows.size:.1%} full")


# ## Try the base model

# In[4]:


gen_kwargs = dict(
    max_new_tokens=300,
    do_sample=True,
    temperature=0.6,
    top_p=0.9,
    use_cache=False,
    pad_token_id=tokenizer.eos_token_id,
)


def prompt_for(article):
    messages = [{"role": "user", "content": "Summarise for a nurse in five sentences:\n\n" + article["body"]}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")


# In[5]:


short = [a for a in articles if len(a["body"]) < 12_000][:5]
for article in short:
    ids = prompt_for(article).to(model.device)
    out = model.generate(ids, **gen_kwargs)
    print("##", article["title"])
    print(tokenizer.decode(out[0, ids.size(1):], skip_special_tokens=True))
    print()


# In[6]:


print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
