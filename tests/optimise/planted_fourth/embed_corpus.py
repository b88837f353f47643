"""Embed a corpus of passages and store the vectors for the search index."""
import argparse
import json

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


def read_passages(path):
    # passages are cut to at most 300 words by the chunking job
    with open(path, encoding="utf-8") as f:
        for line in f:
            rec = json.loads(line)
            yield rec["id"], rec["title"] + "\n" + rec["text"]


def mean_pool(hidden, mask):
    mask = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class Embedder:
    def __init__(self, name, device):
        self.device = torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name, torch_dtype=torch.float16)
        self.model.to(self.device)
        self.model.eval()
        self.dim = self.model.config.hidden_size

    def embed(self, texts):
        enc = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        hidden = self.model(**enc).last_hidden_state
        pooled = mean_pool(hidden, enc["attention_mask"])
        return torch.nn.functional.normalize(pooled, dim=-1)

    def embed_all(self, texts, batch_size):
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        vectors = np.empty((len(texts), self.dim), dtype=np.float16)
        for a in range(0, len(order), batch_size):
            idx = order[a : a + batch_size]
            emb = self.embed([texts[i] for i in idx])
            host = emb.detach().to("cpu", non_blocking=True)
            vectors[idx] = host.numpy()
        return vectors


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("passages")
    ap.add_argument("out")
    ap.add_argument("--model", default="intfloat/e5-base-v2")
    ap.add_argument("--batch-size", type=int, default=256)
    ap.add_argument("--device", default="cuda")
    args = ap.parse_args()

    ids, texts = zip(*read_passages(args.passages))
    embedder = Embedder(args.model, args.device)
    vectors = embedder.embed_all(texts, args.batch_size)
    np.save(args.out, vectors)
    with open(args.out + ".ids.json", "w", encoding="utf-8") as f:
        json.dump(ids, f)
    print(f"{len(ids)} passages, {vectors.shape[1]} dimensions")


if __name__ == "__main__":
    main()
