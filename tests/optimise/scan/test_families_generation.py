"""Families of faults of generation: set from outside, one draw for many rows, prompts cut, seeds of requests."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

FAMILIES = Collection()
fault, right = FAMILIES.fault, FAMILIES.right

# --- copied-token -----------------------------------------------------------------------------------------------------
fault("copied-token", "the object's last token was set by whoever drew it", """
    import torch
    class State:
        last = None
        def widen(self, n):
            self.last = self.last.expand(n, 1)  # <-
    class Sampler:
        def begin(self, model, prompt):
            state = State()
            probs = model(prompt)[:, -1].softmax(-1)
            state.last = torch.multinomial(probs, 1)
            state.widen(4)
            return state
""")  # fmt: skip
fault("copied-token", "the first row's draw fills the column", """
    import torch
    def write(model, prompt, n, steps):
        out = torch.zeros((n, steps), dtype=torch.long)
        logits = model(prompt.expand(n, -1))[:, -1]
        for t in range(steps):
            out[:, t] = torch.multinomial(logits[:1].softmax(-1), 1).squeeze(1)  # <-
            logits = model(out[:, t : t + 1], cache=model.cache)[:, -1]
        return out
""")  # fmt: skip
fault("copied-token", "one draw wherever a row goes on", """
    import torch
    def step(probs, done, pad):
        tok = torch.multinomial(probs[0], 1)
        return torch.where(done, pad, tok)  # <-
""")  # fmt: skip
right("copied-token", "each row of the column draws", """
    import torch
    def write(model, prompt, n, steps):
        out = torch.zeros((n, steps), dtype=torch.long)
        logits = model(prompt.expand(n, -1))[:, -1]
        for t in range(steps):
            out[:, t] = torch.multinomial(logits.softmax(-1), 1).squeeze(1)
            logits = model(out[:, t : t + 1], cache=model.cache)[:, -1]
        return out
""")  # fmt: skip
right("copied-token", "the state keeps a token per row", """
    import torch
    class State:
        last = None
        def widen(self, n):
            self.logits = self.logits.expand(n, -1)
    class Sampler:
        def begin(self, model, prompt):
            state = State()
            state.logits = model(prompt)[:, -1]
            state.widen(4)
            state.last = torch.multinomial(state.logits.softmax(-1), 1)
            return state
""")  # fmt: skip
fault("copied-token", "one state with its token, once for every row", """
    import copy, torch
    class State:
        def __init__(self, ids):
            self.ids, self.last = ids, None
    def fork(model, prompt, n):
        state = State(prompt)
        state.last = torch.multinomial(model(prompt)[:, -1].softmax(-1), 1)
        return [copy.deepcopy(state) for _ in range(n)]  # <-
""")  # fmt: skip
fault("copied-token", "set on each row in a loop", """
    import torch
    def begin(model, prompt, rows):
        tok = torch.multinomial(model(prompt)[:, -1].softmax(-1), 1).item()
        for row in rows:
            row.last = tok  # <-
        return rows
""")  # fmt: skip
right("copied-token", "one state without a token, once for every row", """
    import copy, torch
    class State:
        def __init__(self, ids):
            self.ids, self.last = ids, None
    def fork(model, prompt, n):
        state = State(prompt)
        state.logits = model(prompt)[:, -1]
        rows = [copy.deepcopy(state) for _ in range(n)]
        for row in rows:
            row.last = torch.multinomial(row.logits.softmax(-1), 1)
        return rows
""")  # fmt: skip
right("copied-token", "listeners hear each token", """
    import torch
    def write(model, ids, listeners):
        tok = torch.multinomial(model(ids)[:, -1].softmax(-1), 1).item()
        for listener in listeners:
            listener.hear(tok)
        return tok
""")  # fmt: skip
fault("copied-token", "one number of numpy for a whole column", """
    import numpy as np
    def begin(probs, prompts, dice):
        out = np.zeros((len(prompts), 1), dtype=int)
        out[:] = dice.choice(len(probs), p=probs)  # <-
        return out
""")  # fmt: skip
right("copied-token", "as many numbers as rows", """
    import numpy as np
    def begin(probs, prompts, dice):
        out = np.zeros((len(prompts), 1), dtype=int)
        out[:, 0] = dice.choice(len(probs), size=len(prompts), p=probs)
        return out
""")  # fmt: skip

# --- no-kv-cache ------------------------------------------------------------------------------------------------------
fault("no-kv-cache", "a helper joins prefix and text and keeps the last position", """
    import torch
    class Writer:
        def __init__(self, lm):
            self.lm = lm
        def _scores(self, prefix, ids):
            hidden = self.lm.transformer(torch.cat([prefix, self.lm.embed(ids)], 1))  # <-
            return self.lm.head(hidden[:, -1])
        def write(self, prefix, ids, steps):
            with torch.no_grad():
                for _ in range(steps):
                    tok = torch.multinomial(self._scores(prefix, ids).softmax(-1), 1)
                    ids = torch.cat([ids, tok], 1)
            return ids
""")  # fmt: skip
right("no-kv-cache", "the body gets one token and a cache", """
    import torch
    class Writer:
        def __init__(self, lm):
            self.lm = lm
        def _scores(self, tok, cache):
            return self.lm.head(self.lm.transformer(self.lm.embed(tok), cache)[:, -1])
        def write(self, tok, cache, steps):
            out = [tok]
            with torch.no_grad():
                for _ in range(steps):
                    tok = torch.multinomial(self._scores(tok, cache).softmax(-1), 1)
                    out.append(tok)
            return torch.cat(out, 1)
""")  # fmt: skip
fault("no-kv-cache", "switched off in the model's settings", """
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("x").cuda().eval()
    model.config.use_cache = False  # <-
    def answer(ids):
        return model.generate(ids, max_new_tokens=64)
""")  # fmt: skip
right("no-kv-cache", "switched off while it trains", """
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("x").cuda()
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    def step(batch):
        model(**batch).loss.backward()
    def answer(ids):
        return model.generate(ids, max_new_tokens=64, use_cache=True)
""")  # fmt: skip

# --- cache-overflow ---------------------------------------------------------------------------------------------------
fault("cache-overflow", "the place is held back before a model that is not seen", """
    import torch
    from house import load
    LIMIT = 2048
    class Chat:
        def __init__(self):
            self.lm, self.cache, self.pos = load(), torch.zeros(2, LIMIT, 64), 0
        def feed(self, ids):
            n = ids.shape[1]
            begin = torch.arange(n).add(min(self.pos, LIMIT - n))
            pos = min(self.pos, LIMIT - n)  # <-
            self.pos += n
            return self.lm.run(ids, self.cache, pos)
""")  # fmt: skip
fault("cache-overflow", "set back when the end is reached", """
    from house import load
    MAX_LEN = 2048
    class Chat:
        def __init__(self):
            self.lm, self.pos = load(), 0
            self.kv = self.lm.new_cache(MAX_LEN)
        def feed(self, ids):
            start = self.pos
            if start + len(ids) > MAX_LEN:
                start = MAX_LEN - len(ids)  # <-
            self.pos += len(ids)
            return self.lm.run(ids, self.kv, start)
""")  # fmt: skip
right("cache-overflow", "refused at the end", """
    from house import load
    MAX_LEN = 2048
    class Chat:
        def __init__(self):
            self.lm, self.pos = load(), 0
            self.kv = self.lm.new_cache(MAX_LEN)
        def feed(self, ids):
            if self.pos + len(ids) > MAX_LEN:
                raise ValueError(f"{self.pos + len(ids)} positions, the cache has {MAX_LEN}")
            start = self.pos
            self.pos += len(ids)
            return self.lm.run(ids, self.kv, start)
""")  # fmt: skip
fault("cache-overflow", "the beginning of a conversation falls off", """
    class Bot:
        def __init__(self, tokenizer, model, window, reply):
            self.tokenizer, self.model, self.window, self.reply = tokenizer, model, window, reply
        def answer(self, messages):
            ids = self.tokenizer.apply_chat_template(messages, return_tensors="pt")
            ids = ids[:, -(self.window - self.reply):]  # <-
            return self.model.generate(ids, max_new_tokens=self.reply)
""")  # fmt: skip
right("cache-overflow", "the cut is said", """
    import logging
    class Bot:
        def __init__(self, tokenizer, model, window, reply):
            self.tokenizer, self.model, self.window, self.reply = tokenizer, model, window, reply
        def answer(self, messages):
            ids = self.tokenizer.apply_chat_template(messages, return_tensors="pt")
            if ids.shape[1] > self.window - self.reply:
                logging.warning("%d tokens cut to %d", ids.shape[1], self.window - self.reply)
                ids = ids[:, -(self.window - self.reply):]
            return self.model.generate(ids, max_new_tokens=self.reply)
""")  # fmt: skip
right("cache-overflow", "texts for training are cut to the context", """
    def rows(tokenizer, texts, context_limit):
        for text in texts:
            ids = tokenizer.encode(text)
            yield ids[:context_limit]
""")  # fmt: skip

# --- rng --------------------------------------------------------------------------------------------------------------
SERVER = """
    import threading
    import torch
    from fastapi import FastAPI
    from pydantic import BaseModel
    app, lock = FastAPI(), threading.Lock()
    class Ask(BaseModel):
        prompt: str
        seed: SEED
    def draw(model, ids):
        return torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
    @app.post("/ask")
    def ask(body: Ask):
        with lock:
            BODY
            return {"token": draw(app.state.model, body.prompt).item()}
"""
fault("rng", "a request's seed is a number unless it says so", SERVER.replace("SEED", "int = 1234").replace(
    "BODY", "torch.manual_seed(body.seed)  # <-"))  # fmt: skip
fault("rng", "no seed means zero", SERVER.replace("SEED", "int | None = None").replace(
    "BODY", "torch.manual_seed(body.seed or 0)  # <-"))  # fmt: skip
right("rng", "seeded only where a request asks for it", SERVER.replace("SEED", "int | None = None").replace(
    "BODY", "body.seed is None or torch.manual_seed(body.seed)"))  # fmt: skip

# --- host-sync --------------------------------------------------------------------------------------------------------
fault("host-sync", "a number of each row of a mask", """
    import torch
    def costs(mask, limit):
        out = []
        for row in mask:
            out.append(max(row.sum().item() - limit, 0))  # <-
        return torch.tensor(out, device=mask.device)
""")  # fmt: skip
fault("host-sync", "rows by number", """
    import torch
    def lengths(model, ids, eos):
        hits = model(ids).argmax(-1) == eos
        return [int(hits[i].sum()) for i in range(hits.shape[0])]  # <-
""")  # fmt: skip
right("host-sync", "all rows at once", """
    import torch
    def costs(mask, limit):
        over = (mask.sum(1) - limit).clamp(min=0)
        return over.to(mask.device)
""")  # fmt: skip
right("host-sync", "rows of a list on the host", """
    import torch
    def costs(mask, limit):
        rows = mask.sum(1).tolist()
        return torch.tensor([float(max(n - limit, 0)) for n in rows], device=mask.device)
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in FAMILIES.variants])
def test_each_writing_of_a_fault_of_generation_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
