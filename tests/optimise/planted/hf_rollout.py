"""PPO rollouts with a transformers causal model."""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def build(name):
    tok = AutoTokenizer.from_pretrained(name, padding_side="left")
    lm = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16).cuda()
    lm.config.use_cache = False  # needed for gradient checkpointing
    lm.gradient_checkpointing_enable()
    return tok, lm


@torch.no_grad()
def rollout(lm, tok, prompts, length):
    batch = tok(prompts, return_tensors="pt", padding=True).to("cuda")
    was_training = lm.training
    lm.eval()
    ids = lm.generate(**batch, max_new_tokens=length, do_sample=True, use_cache=False)
    lm.train(was_training)
    return ids[:, batch["input_ids"].size(1):]


@torch.no_grad()
def logprobs(lm, ids, mask):
    out = lm(input_ids=ids, attention_mask=mask).logits
    lp = torch.log_softmax(out[:, :-1], -1)
    return lp.gather(-1, ids[:, 1:, None]).squeeze(-1)


def kl(new, old):
    ratio = old - new
    return (ratio.exp() - 1 - ratio).mean()


def clipped(new, old, adv, eps=0.2):
    r = (new - old).exp()
    return -torch.min(r * adv, r.clamp(1 - eps, 1 + eps) * adv).mean()
