"""The loss in pieces: the plain loss and its gradients, whatever the number of pieces and whatever is learned."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from intone.config import model_config
from intone.model.gpt import GPT
from intone.model.head import loss_in_pieces

CONFIG = replace(model_config("modern", depth=1, vocab_size=203, context=13), width=32, num_heads=1, num_kv_heads=1)
SOFTCAP = 15.0


def plain(x, weight, targets, vocab_size):
    """The same in PyTorch's operations, all at once."""
    logits = (x @ weight[:vocab_size].to(x.dtype).mT).to(torch.promote_types(x.dtype, torch.float32))
    logits = SOFTCAP * torch.tanh(logits / SOFTCAP)
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")


@pytest.fixture
def tensors():
    """x (N, D), weight of which three rows are padding, targets of which a third is not learned."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(29, 7, generator=generator, dtype=torch.float64)
    weight = torch.randn(14, 7, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(11, (29,), generator=generator)
    targets[::3] = -1
    return x.requires_grad_(), weight.requires_grad_(), targets


@pytest.mark.parametrize("pieces", [1, 2, 4, 40])  # 29 tokens: no multiple, and more pieces than tokens
def test_loss_and_gradients_are_those_of_all_logits_at_once(tensors, pieces):
    x, weight, targets = tensors
    expected = torch.autograd.grad(plain(x, weight, targets, 11) * 0.3, (x, weight))
    loss = loss_in_pieces(x, weight, targets, vocab_size=11, softcap=SOFTCAP, pieces=pieces)
    assert_close(loss, plain(x, weight, targets, 11))
    for found, wanted in zip(torch.autograd.grad(loss * 0.3, (x, weight)), expected, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("pieces", [1, 3])
def test_losses_that_count_differently_have_the_gradients_of_their_weighted_sum(tensors, pieces):
    x, weight, targets = tensors
    counts = torch.linspace(-1.5, 2.0, 29, dtype=torch.float64)
    logits = SOFTCAP * torch.tanh((x @ weight[:11].mT) / SOFTCAP)
    expected = (torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="none") * counts).sum()
    loss = loss_in_pieces(x, weight, targets, vocab_size=11, softcap=SOFTCAP, pieces=pieces, weights=counts)
    assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, (x, weight))
    for found, gradient in zip(torch.autograd.grad(loss, (x, weight)), wanted, strict=True):
        assert_close(found, gradient)


def test_tokens_that_are_not_learned_add_exactly_nothing(tensors):
    x, weight, targets = tensors
    loss = loss_in_pieces(x, weight, torch.full_like(targets, -1), vocab_size=11, softcap=SOFTCAP, pieces=3)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (x, weight)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_model_trains_alike_with_its_head_in_pieces(dtype, tolerance):
    model = GPT(CONFIG)
    model.init_weights(0)
    model.compute_dtype = dtype
    ids = torch.randint(203, (3, 14), generator=torch.Generator().manual_seed(2))
    ids, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[1, 4:] = -1
    seen = []
    for pieces in (1, 5):
        model.head_pieces = pieces
        model.zero_grad()
        loss, count = model(ids, targets)
        loss.backward()
        assert count == 3 * 13 - 9
        seen.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}))
    (loss, gradients), (loss_pieces, gradients_pieces) = seen
    assert loss_pieces == pytest.approx(loss, rel=tolerance)
    sizes = {name: float(wanted.abs().max()) for name, wanted in gradients.items()}
    for name, wanted in gradients.items():  # a gradient that all but cancels is no smaller than what it is summed from
        size = max(sizes[name], 1e-3 * max(sizes.values()))
        assert float((gradients_pieces[name] - wanted).abs().max()) <= tolerance * size, name


def test_without_gradients_the_plain_way_is_taken(monkeypatch):
    model = GPT(CONFIG)
    model.head_pieces = 4
    monkeypatch.setattr("intone.model.gpt.loss_in_pieces", None)  # calling it would be an error
    with torch.no_grad():
        model(torch.zeros(1, 13, dtype=torch.int64), torch.zeros(1, 13, dtype=torch.int64))
