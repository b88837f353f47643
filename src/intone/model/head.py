"""The loss in pieces: logits of a part of the tokens at a time, with their gradient, so that all never exist at once"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class LossInPieces(torch.autograd.Function):
    """The softcapped cross-entropy of GPT.forward and its gradients, computed together in the forward pass.

    Nothing is computed twice: backward() only scales what is there. Kept for it: a gradient of x's size and one of the
    weight's. The idea, gradients beside the loss chunk by chunk: Hsu et al. 2024, Liger Kernel, section 3.2.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, softcap: float, pieces: int,
        weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        narrow = weight[:vocab_size].to(x.dtype)
        wide = torch.promote_types(x.dtype, torch.float32)
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight)
        loss_sum = torch.zeros((), dtype=wide, device=x.device)
        counts: Sequence[Tensor | None] = [None] * len(x.chunk(pieces)) if weights is None else weights.chunk(pieces)
        parts = zip(x.chunk(pieces), targets.chunk(pieces), grad_x.chunk(pieces), counts, strict=True)
        for part, wanted, grad, count in parts:
            squashed = F.linear(part, narrow).to(wide).div_(softcap).tanh_()
            logits = squashed * softcap
            log_sum = logits.logsumexp(dim=-1)
            is_learned = wanted >= 0
            place = wanted.clamp_min(0).unsqueeze(-1)
            picked = logits.gather(-1, place).squeeze(-1)
            losses = torch.where(is_learned, log_sum - picked, 0.0)
            loss_sum += (losses if count is None else losses * count).sum()
            share = logits.sub_(log_sum.unsqueeze(-1)).exp_()
            share.scatter_add_(-1, place, torch.full_like(place, -1, dtype=wide))
            # of softcap * tanh(z / softcap) by z: 1 - tanh squared
            share.mul_(squashed.square_().neg_().add_(1.0)).masked_fill_(~is_learned.unsqueeze(-1), 0.0)
            if count is not None:
                share.mul_(count.unsqueeze(-1))
            outer = share.to(x.dtype)
            torch.mm(outer, narrow, out=grad)
            grad_weight[:vocab_size] += outer.mT @ part
        ctx.save_for_backward(grad_x, grad_weight)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        (factor,) = grads
        return grad_x * factor.to(grad_x.dtype), grad_weight * factor, None, None, None, None, None


def loss_in_pieces(
    x: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, softcap: float, pieces: int,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x (N, D), weight (at least V, D) float32, targets (N,) int64 with -1 = not learned -> loss_sum () float32.

    The loss and gradients of GPT.forward up to rounding; needs the memory of N / pieces tokens' logits. In training
    only: the gradients are computed in any case. weights (N,) float32: what each token's loss counts; None: 1.
    """
    loss: Tensor = LossInPieces.apply(x, weight, targets, vocab_size, softcap, pieces, weights)
    return loss
