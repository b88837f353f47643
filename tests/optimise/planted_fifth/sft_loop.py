import argparse
import json
import os
import random

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

IGNORE = -100


class ChatDataset(Dataset):
    def __init__(self, path, tokenizer, max_len):
        self.rows = []
        with open(path) as f:
            for line in f:
                messages = json.loads(line)["messages"]
                full = tokenizer.apply_chat_template(messages)
                prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)
                if len(full) > max_len:
                    continue
                labels = [IGNORE] * len(prompt) + full[len(prompt):]
                self.rows.append((full, labels))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Collate:
    def __init__(self, pad_id):
        self.pad_id = pad_id

    def __call__(self, rows):
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), longest), self.pad_id)
        labels = torch.full((len(rows), longest), IGNORE)
        for r, (a, b) in enumerate(rows):
            ids[r, : len(a)] = torch.tensor(a)
            labels[r, : len(b)] = torch.tensor(b)
        return ids, labels


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("data")
    p.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M")
    p.add_argument("--out", default="sft-out")
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--lr", type=float, default=3e-5)
    p.add_argument("--max-len", type=int, default=4096)
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def main():
    args = parse()
    os.makedirs(args.out, exist_ok=False)
    random.seed(args.seed)
    torch.manual_seed(args.seed)

    tok = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=torch.bfloat16).cuda()
    data = ChatDataset(args.data, tok, args.max_len)
    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(data, args.batch_size, shuffle=True, generator=order, pin_memory=True,
                        collate_fn=Collate(tok.eos_token_id), num_workers=2, drop_last=True)

    model = torch.compile(base, mode="reduce-overhead")
    opt = torch.optim.AdamW(base.parameters(), lr=args.lr, weight_decay=0.0)
    total = args.epochs * len(loader)
    sched = get_cosine_schedule_with_warmup(opt, total // 20, total)

    step = 0
    model.train()
    for epoch in range(args.epochs):
        for ids, labels in loader:
            ids = ids.cuda(non_blocking=True)
            labels = labels.cuda(non_blocking=True)
            logits = model(input_ids=ids).logits
            logits = logits.float()
            loss = F.cross_entropy(
                logits[:, :-1].reshape(-1, logits.size(-1)), labels[:, 1:].reshape(-1), ignore_index=IGNORE
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
            opt.step()
            sched.step()
            opt.zero_grad(set_to_none=True)
            if step % 25 == 0:
                print(f"epoch {epoch} step {step}/{total} loss {loss.item():.4f}")
            step += 1

    base.save_pretrained(args.out)
    tok.save_pretrained(args.out)


if __name__ == "__main__":
    main()
