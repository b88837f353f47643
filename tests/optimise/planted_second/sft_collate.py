"""Supervised fine-tuning on prompt/response pairs."""
import json
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100


def read_pairs(path, tokenizer, limit):
    with open(path) as fh:
        for line in fh:
            rec = json.loads(line)
            prompt = tokenizer.encode(rec["prompt"])
            reply = tokenizer.encode(rec["response"]) + [tokenizer.eos_token_id]
            ids = (prompt + reply)[:limit]
            labels = ([IGNORE] * len(prompt) + reply)[:limit]
            yield torch.tensor(ids), torch.tensor(labels)


def collate(samples, pad_id, limit):
    ids, labels = zip(*samples)
    ids = pad_sequence(ids, batch_first=True, padding_value=pad_id)
    labels = pad_sequence(labels, batch_first=True, padding_value=IGNORE)
    extra = limit - ids.size(1)
    ids = F.pad(ids, (0, extra), value=pad_id)
    labels = F.pad(labels, (0, extra), value=IGNORE)
    return {"input_ids": ids, "labels": labels, "attention_mask": ids.ne(pad_id)}


def batches(stream, size, fn):
    stream = iter(stream)
    while len(chunk := list(islice(stream, size))) == size:
        yield fn(chunk)


def sft(model, tokenizer, path, lr=1e-5, batch_size=16, accum=4, limit=1024):
    model = torch.compile(model.cuda().train())
    optim = torch.optim.AdamW(model.parameters(), lr=lr)
    fn = partial(collate, pad_id=tokenizer.pad_token_id, limit=limit)
    pending = 0
    for batch in batches(read_pairs(path, tokenizer, limit), batch_size, fn):
        batch = {k: v.cuda() for k, v in batch.items()}
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        pending += 1
        if pending == accum:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optim.step()
            optim.zero_grad(set_to_none=True)
            pending = 0
    return model
