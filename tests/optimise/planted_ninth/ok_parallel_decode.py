"""n independent continuations of one prompt with a static cache."""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StaticCache


class ParallelDecoder:
    CHECK_EVERY = 16

    def __init__(self, name, n=8, max_len=2048, device="cuda"):
        self.n, self.max_len = n, max_len
        self.device = torch.device(device)
        self.tok = AutoTokenizer.from_pretrained(name)
        self.lm = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16)
        self.lm = self.lm.to(self.device).eval()
        self.cache = StaticCache(
            config=self.lm.config,
            max_batch_size=n,
            max_cache_len=max_len,
            device=self.device,
            dtype=self.lm.dtype,
        )
        self.step = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)

    def _step(self, tok, cache, position):
        out = self.lm(
            input_ids=tok,
            past_key_values=cache,
            cache_position=position,
            use_cache=True,
        )
        return out.logits[:, -1]

    def _draw(self, logits, temperature, gen):
        probs = torch.softmax(logits.float() / temperature, dim=-1)
        return torch.multinomial(probs, 1, generator=gen)

    @torch.inference_mode()
    def sample(self, prompt, max_new_tokens=256, temperature=0.8, seed=None):
        gen = torch.Generator(device=self.device)
        if seed is None:
            gen.seed()
        else:
            gen.manual_seed(seed)

        ids = self.tok(prompt, return_tensors="pt").input_ids
        length = ids.size(1)
        if length + max_new_tokens > self.max_len:
            raise ValueError(f"{length} + {max_new_tokens} tokens exceed {self.max_len}")
        ids = ids.repeat(self.n, 1).to(self.device)

        cache = self.cache
        cache.reset()
        out = self.lm(
            input_ids=ids,
            past_key_values=cache,
            cache_position=torch.arange(length, device=self.device),
            use_cache=True,
            logits_to_keep=1,
        )
        tok = self._draw(out.logits[:, -1], temperature, gen)
        position = torch.tensor([length], device=self.device)
        eos = self.tok.eos_token_id
        done = tok.eq(eos)
        pieces = [tok]
        for i in range(1, max_new_tokens):
            if i % self.CHECK_EVERY == 0 and bool(done.all()):
                break
            logits = self.step(tok, cache, position).clone()
            tok = self._draw(logits, temperature, gen).masked_fill(done, eos)
            done = done | tok.eq(eos)
            pieces.append(tok)
            position = position + 1
        rows = torch.cat(pieces, dim=1).cpu()
        return self.tok.batch_decode(rows, skip_special_tokens=True)
