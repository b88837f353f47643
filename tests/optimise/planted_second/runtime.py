"""Model loading and plain text completion for the command line client."""
import os
from typing import Optional, Union

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PRECISION = {"cuda": torch.bfloat16, "mps": torch.float16}


def best_device(name: Optional[str] = None) -> torch.device:
    if name:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load(path: Union[str, os.PathLike], device: Optional[str] = None):
    dev = best_device(device)
    dtype = PRECISION.get(dev, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=dtype).to(dev)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def choose(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature <= 0:
        return scores.argmax(-1, keepdim=True)
    return torch.multinomial((scores / temperature).softmax(-1), 1)


def complete(model: PreTrainedModel, tokenizer, prompt: str, budget: int = 200, temperature: float = 0.0) -> str:
    enc = tokenizer(prompt, return_tensors="pt").to(model.device)
    ids, mask = enc.input_ids, enc.attention_mask
    begin = ids.shape[1]
    with torch.inference_mode():
        while ids.shape[1] - begin < budget:
            out = model(input_ids=ids, attention_mask=mask)
            token = choose(out.logits[:, -1].float(), temperature)
            ids = torch.cat([ids, token], dim=-1)
            mask = torch.cat([mask, mask.new_ones(1, 1)], dim=-1)
    text = tokenizer.decode(ids[0, begin:])
    return text.split(tokenizer.eos_token)[0]
