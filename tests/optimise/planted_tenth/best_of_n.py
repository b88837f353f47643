"""Best-of-n: draw n chains of thought per problem, let a yes/no verifier choose."""
import json
import pathlib
from typing import Iterator, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


class Pick(NamedTuple):
    text: str
    score: float


def problems(path: pathlib.Path) -> Iterator[dict]:
    with path.open() as fh:
        for line in fh:
            if line.strip():
                yield json.loads(line)


def load(name: str) -> PreTrainedModel:
    net = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16)
    return net.cuda().eval()


def top_p_filter(probs: torch.Tensor, p: float) -> torch.Tensor:
    ordered, index = probs.sort(dim=-1, descending=True)
    beyond = ordered.cumsum(-1) - ordered > p
    ordered = ordered.masked_fill(beyond, 0.0)
    return torch.zeros_like(probs).scatter(-1, index, ordered)


def next_probs(net: PreTrainedModel, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    last = net(input_ids=ids, logits_to_keep=1).logits[:, -1]
    return torch.softmax(last.float() / temperature, dim=-1)


@torch.inference_mode()
def chains(net, prompt: torch.Tensor, n: int, eos: int, limit: int = 768,
           temperature: float = 0.8, p: float = 0.95) -> torch.Tensor:
    ids = prompt.expand(n, -1).contiguous()
    stop = ids.size(1) + limit
    closed = torch.zeros(n, 1, dtype=torch.bool, device=ids.device)
    while ids.size(1) < stop:
        probs = next_probs(net, ids, temperature)
        token = torch.multinomial(top_p_filter(probs, p), 1)
        token = token.masked_fill(closed, eos)
        closed |= token == eos
        ids = torch.cat([ids, token], dim=1)
        if closed.all():
            break
    return ids


@torch.inference_mode()
def verify(judge: PreTrainedModel, ids: torch.Tensor, yes: int, no: int) -> torch.Tensor:
    logits = judge(input_ids=ids).logits.float()
    margin = logits[:, -1, yes] - logits[:, -1, no]
    return margin


def choose(net, judge, tok, question: str, n: int) -> Pick:
    prompt = tok(f"Problem: {question}\nReasoning:", return_tensors="pt").input_ids.cuda()
    rows = chains(net, prompt, n, tok.eos_token_id)
    tail = tok("\nIs the reasoning correct? Answer:", return_tensors="pt").input_ids.cuda()
    margin = verify(
        judge,
        torch.cat([rows, tail.expand(n, -1)], dim=1),
        tok.convert_tokens_to_ids("Yes"),
        tok.convert_tokens_to_ids("No"),
    )
    value, where = margin.max(dim=0)
    best = rows[where, prompt.size(1):]
    return Pick(tok.decode(best, skip_special_tokens=True), value.item())


def main(source: str, target: str, policy: str, verifier: str, n: int = 16, seed: int = 11):
    torch.manual_seed(seed)
    tok = AutoTokenizer.from_pretrained(policy)
    net, judge = load(policy), load(verifier)
    with open(target, "w") as out:
        for item in problems(pathlib.Path(source)):
            pick = choose(net, judge, tok, item["question"], n)
            out.write(json.dumps({"id": item["id"], "answer": pick.text, "score": pick.score}) + "\n")


if __name__ == "__main__":
    import fire

    fire.Fire(main)
