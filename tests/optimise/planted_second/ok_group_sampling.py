"""Several answers to one prompt; the prompt is read once."""
import itertools
from typing import List

import torch
from transformers import DynamicCache


class GroupSampler:
    def __init__(self, model, tokenizer, base_seed: int = 0):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.base_seed = base_seed
        self._serial = itertools.count()

    @torch.inference_mode()
    def answers(self, prompt: str, n: int = 8, limit: int = 256, temperature: float = 1.0) -> List[str]:
        device = self.model.device
        rng = torch.Generator(device=device)
        rng.manual_seed(self.base_seed + next(self._serial))
        eos = self.tokenizer.eos_token_id
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(device)
        cache = DynamicCache()
        logits = self.model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
        cache.batch_repeat_interleave(n)
        logits = logits.repeat(n, 1)

        columns = []
        ended = torch.zeros(n, 1, dtype=torch.bool, device=device)
        while True:
            probs = torch.softmax(logits.float() / temperature, dim=-1)
            token = torch.multinomial(probs, 1, generator=rng).masked_fill(ended, eos)
            columns.append(token)
            ended |= token == eos
            if len(columns) == limit or (len(columns) % 32 == 0 and bool(ended.all())):
                break
            logits = self.model(token, past_key_values=cache, use_cache=True).logits[:, -1]
        return self.tokenizer.batch_decode(torch.cat(columns, dim=1), skip_special_tokens=True)
