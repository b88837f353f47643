"""The optimizer: Muon for the blocks' matrices, AdamW for tables, head and scalars, both batched by shape."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from intone.config import OptimConfig
from intone.model.gpt import GPT
from intone.model.native.build import Variant
from intone.model.native.ops import call
from intone.model.sharding import GroupShard, Part
from intone.team import ALONE, Team

# Quintic coefficients, one triple per iteration. Source: Amsel et al. 2025, "The Polar Express"
# (arXiv 2505.16932), five iterations, safety factor 2e-2
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Source: Jordan 2024, "Muon: an optimizer for hidden layers", the same triple at every iteration
NEWTON_SCHULZ = ((3.4445, -4.775, 2.0315),) * 5


@dataclass(frozen=True)
class StepScale:
    """What the schedule says at one step: factors on the learning rates and decay, and Muon's momentum."""

    lr: float
    momentum: float
    weight_decay: float


@dataclass
class Group:
    """Parameters that share constants. For Muon they also share their shape and are updated as one stack."""

    kind: str  # "muon" or "adamw"
    names: list[str]
    params: list[nn.Parameter]
    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10
    state: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Optimizer:
    """Muon and AdamW over a model's parameter groups; step() consumes p.grad and clears it.

    All hyper-parameters enter the update functions as 0-d tensors, so that compiling them never recompiles.
    """

    def __init__(self, model: GPT, config: OptimConfig, *, compiled: bool = False, team: Team = ALONE) -> None:
        """team: with others, gradients are summed over all of them and each keeps only its part of the moments."""
        self.config = config
        self.groups = parameter_groups(model, config)
        self.num_steps = 0
        self.orthogonalise_dtype = torch.bfloat16 if model.compute_dtype == torch.bfloat16 else torch.float32
        self.kernels = "torch"  # native: updates run on model/native/optimizer.cpp, where there is one
        self._muon: Callable[..., None] = muon_update
        self._adamw: Callable[..., None] = adamw_update
        self.use_compiled(compiled)
        self._shards: list[GroupShard] | None = None  # of the groups, in their order; None: everything is ours
        if team.size > 1:
            self._shards = [GroupShard(group.params, team, whole=group.kind == "muon") for group in self.groups]
        for group, params in zip(self.groups, self._own_params(), strict=True):
            group.state = initial_state(group, params, config)

    def use_compiled(self, compiled: bool) -> None:
        """From here on the updates are compiled code, or not: few passes over memory instead of one an operation."""
        if compiled != (self._muon is not muon_update):
            self._muon = torch.compile(muon_update, dynamic=False) if compiled else muon_update
            self._adamw = torch.compile(adamw_update, dynamic=False) if compiled else adamw_update

    def _own_params(self) -> list[list[Tensor]]:
        """What this process updates, group by group."""
        if self._shards is None:
            return [list(group.params) for group in self.groups]
        return [shard.params for shard in self._shards]

    @torch.no_grad()
    def step(self, scale: StepScale, finite: Tensor | None = None) -> None:
        """One update from the accumulated gradients, which are freed. A parameter without gradient stays.

        finite () bool on the gradients' device, False: nothing changes but the step count. It is not read by
        the host, so a device queue never waits for it. In a team it is the same everywhere.
        """
        self.num_steps += 1
        if finite is not None and finite.device.type == "cpu":
            if not finite:
                self._forget_gradients()
                return
            finite = None
        if self._shards is not None:
            self._sharded_step(self._shards, scale, finite)
            return
        for group in self.groups:
            if any(p.grad is None for p in group.params):
                continue
            self._update(group, list(group.params), [p.grad for p in group.params], scale, finite)  # type: ignore[misc]
            for p in group.params:
                p.grad = None

    def _sharded_step(self, shards: list[GroupShard], scale: StepScale, finite: Tensor | None) -> None:
        """All groups travel at once: while one is updated, others arrive and leave."""
        summed = [shard.scatter() for shard in shards]
        gatherings = []
        for group, shard, waiting in zip(self.groups, shards, summed, strict=True):
            grads = shard.grads(waiting.wait())
            if not shard.is_empty:
                self._update(group, shard.params, grads, scale, finite)
            gatherings.append(shard.gather())
        for gathering in gatherings:
            gathering.finish()

    def _update(
        self, group: Group, params: list[Tensor], grads: list[Tensor], scale: StepScale, finite: Tensor | None
    ) -> None:
        """Changes params, which are a part of the group or all of it, and the group's state."""
        apply = torch.ones(()) if finite is None else finite.to(torch.float32)
        if finite is not None:
            grads = [torch.where(finite, grad, 0.0) for grad in grads]
        if self.kernels == "native" and not self.config.plain_muon:
            native_update(group, params, grads, self, scale)
        elif group.kind == "muon":
            self._step_muon(group, params, grads, scale, apply)
        else:
            self._step_adamw(group, params, grads, scale, apply)

    def _forget_gradients(self) -> None:
        for group in self.groups:
            for p in group.params:
                p.grad = None

    def _step_muon(
        self, group: Group, params: list[Tensor], grads: list[Tensor], scale: StepScale, apply: Tensor
    ) -> None:
        stacked = torch.stack(params)
        self._muon(
            stacked, torch.stack(grads), group.state["momentum"], group.state.get("second_moment"),
            scalar(group.lr * scale.lr), scalar(scale.momentum), scalar(group.weight_decay * scale.weight_decay),
            scalar(self.config.second_moment), apply, self.orthogonalise_dtype, self.config.plain_muon,
        )  # fmt: skip
        for p, new in zip(params, stacked, strict=True):
            p.copy_(new)

    def _step_adamw(
        self, group: Group, params: list[Tensor], grads: list[Tensor], scale: StepScale, apply: Tensor
    ) -> None:
        """The scale's decay factor does not apply: tables and head keep their small constant decay."""
        steps = scalar(self.num_steps)
        for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
            self._adamw(
                p, grad, group.state[f"first.{i}"], group.state[f"second.{i}"], steps,
                scalar(group.lr * scale.lr), scalar(group.betas[0]), scalar(group.betas[1]), scalar(group.eps),
                scalar(group.weight_decay), apply,
            )  # fmt: skip

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything a bitwise resume needs, by stable names; the tensors are live, not copies.

        In a team those of this process: the whole is what all of them have, one after the other (see parts).
        """
        tensors = {"num_steps": torch.tensor(self.num_steps)}
        for group in self.groups:
            for key, value in group.state.items():
                tensors[state_name(group, key)] = value
        return tensors

    def parts(self) -> dict[str, Part]:
        """Which part of each tensor of the whole state this process of a team keeps; num_steps is everybody's."""
        assert self._shards is not None, "a process alone keeps the whole"
        return {
            state_name(group, key): shard.parts[0 if group.kind == "muon" else int(key.partition(".")[2])]
            for group, shard in zip(self.groups, self._shards, strict=True)
            for key in group.state
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restores state_tensors(). Raises KeyError or RuntimeError where names or shapes differ.

        A tensor may be flat: that is how those of a team are kept.
        """
        for group in self.groups:
            for key, value in group.state.items():
                value.copy_(tensors[state_name(group, key)].reshape(value.shape))
        self.num_steps = int(tensors["num_steps"])


def state_name(group: Group, key: str) -> str:
    """The name of one tensor of a group's state in a save."""
    return f"{group.names[0]}:{group.kind}:{key}"


def parameter_groups(model: GPT, config: OptimConfig) -> list[Group]:
    """Every parameter in exactly one group; AdamW rates of tables and head scale with width ** -0.5."""
    by_width = (model.config.width / 768) ** -0.5
    named = dict(model.named_parameters())
    groups: list[Group] = []

    def adamw(names: Iterable[str], lr: float, betas: tuple[float, float], decay: float, eps: float = 1e-10) -> None:
        present = [name for name in names if name in named]
        if present:
            groups.append(Group("adamw", present, [named[n] for n in present], lr, decay, betas, eps))

    adamw(["head.weight"], config.head_lr * by_width, (0.8, 0.96), 0.01)
    adamw(["embedding.weight"], config.embedding_lr * by_width, (0.8, 0.995), 0.001)
    tables = [name for name in named if name.startswith("value_embeddings.")]
    adamw(tables, config.value_embedding_lr * by_width, (0.8, 0.995), 0.01)
    # at the start the stream is normed right after these scalars, so their true gradient is near zero:
    # an eps of 1e-10 turned that rounding noise into full-size updates (reference measurement, d4 bf16)
    adamw(["residual_scale"], config.residual_scale_lr, (0.8, 0.95), 0.05, eps=1e-8)
    adamw(["embedding_scale"], config.embedding_scale_lr, (0.96, 0.95), 0.0, eps=1e-8)
    adamw(["smear_gate.weight", "smear_scale", "backout_scale"], config.gate_lr, (0.8, 0.95), 0.0, eps=1e-8)

    matrices = dict(model.matrices())
    for shape in sorted({tuple(p.shape) for p in matrices.values()}):
        names = [name for name, p in matrices.items() if tuple(p.shape) == shape]
        lr = config.matrix_lr * shape_factor(shape)
        groups.append(Group("muon", names, [matrices[n] for n in names], lr, config.weight_decay))
    placed = sum(len(group.names) for group in groups)
    assert placed == len(named), f"{len(named) - placed} parameters are in no optimizer group"
    return groups


def shape_factor(shape: Sequence[int]) -> float:
    """The factor on Muon's rate for a matrix (..., m, n): tall ones move further (Jordan 2024, "Muon")."""
    return max(1.0, shape[-2] / shape[-1]) ** 0.5


def initial_state(group: Group, params: Sequence[Tensor], config: OptimConfig) -> dict[str, Tensor]:
    """Zero moments in float32 for these params of the group, which may be a part of it.

    Muon's second moment is factored: one value per row or column.
    """
    if group.kind == "adamw":
        moments = {f"first.{i}": torch.zeros_like(p) for i, p in enumerate(params)}
        return moments | {f"second.{i}": torch.zeros_like(p) for i, p in enumerate(params)}
    first = group.params[0]
    rows, columns = first.shape
    state = {"momentum": first.new_zeros(len(params), rows, columns)}
    if not config.plain_muon:
        factored = (rows, 1) if rows >= columns else (1, columns)
        state["second_moment"] = first.new_zeros(len(params), *factored)
    return state


def native_update(
    group: Group, params: Sequence[Tensor], grads: Sequence[Tensor], optimizer: Optimizer, scale: StepScale
) -> None:
    """muon_update() or adamw_update() on the CPU kernels: one pass before the products and one after them."""
    lr = group.lr * scale.lr
    variant: Variant = "avx2" if optimizer.orthogonalise_dtype == torch.float32 else "avx512_bf16"
    if group.kind == "muon":
        rows, columns = params[0].shape
        x = torch.empty(len(params), rows, columns, dtype=optimizer.orthogonalise_dtype)
        for i, grad in enumerate(grads):
            moment = group.state["momentum"][i]
            call("intone_muon_before", grad, moment, x[i], rows, columns, float(scale.momentum), variant=variant)
        x = native_orthogonalise(x)
        sums = torch.empty(max(rows, columns) + 16)
        share = 1 - optimizer.config.second_moment
        decay = group.weight_decay * scale.weight_decay
        for i, p in enumerate(params):
            second = group.state["second_moment"][i]
            factors = (float(lr), float(decay), float(share))
            call("intone_muon_after", x[i], p, second, sums, rows, columns, *factors, variant=variant)
    else:
        beta1, beta2 = group.betas
        size, unbias = lr / (1 - beta1**optimizer.num_steps), 1 / (1 - beta2**optimizer.num_steps)
        for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
            assert grad.is_contiguous(), "the kernel walks over it in one go"
            call(
                "intone_adamw", p, grad, group.state[f"first.{i}"], group.state[f"second.{i}"], p.numel(), size,
                unbias, beta1, beta2, group.eps, 1 - lr * group.weight_decay, variant=variant,
            )  # fmt: skip
    # the kernels write behind PyTorch's back: who keeps something made from a parameter must see that it changed
    torch.autograd.graph.increment_version(group.params)


def native_orthogonalise(x: Tensor) -> Tensor:
    """orthogonalise(x (K, m, n), POLAR_EXPRESS), contiguous; float32 in place, by a kernel that needs half of the
    operations or fewer. A matrix's bits depend neither on the others nor on the number of threads."""
    if x.dtype != torch.float32:
        return orthogonalise(x, POLAR_EXPRESS).contiguous()
    assert x.is_contiguous(), "the kernel finds a matrix right behind the one before"
    coefficients = torch.tensor(POLAR_EXPRESS)
    call("intone_orthogonalise", x, coefficients, len(coefficients), *x.shape, variant="avx2")
    return x


def scalar(value: float) -> Tensor:
    """A 0-d float32 CPU tensor: a changing Python float would recompile the update at every step."""
    return torch.tensor(value, dtype=torch.float32)


def adamw_update(
    p: Tensor, grad: Tensor, first: Tensor, second: Tensor, steps: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor,
    eps: Tensor, decay: Tensor, apply: Tensor,
) -> None:  # fmt: skip
    """AdamW (Loshchilov & Hutter 2019) in place on p, first, second; all float32, the same shape.

    apply () is 1, or 0 to leave everything as it is.
    """
    first.lerp_(grad, (1 - beta1) * apply)
    second.lerp_(grad.square(), (1 - beta2) * apply)
    lr = lr * apply
    size = lr / (1 - beta1**steps)
    root = (second / (1 - beta2**steps)).sqrt_().add_(eps)
    p.mul_(1 - lr * decay).sub_(size * (first / root))


def orthogonalise(x: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """x (K, m, n) of Frobenius norm <= 1 -> its nearest semi-orthogonal matrices, approximately."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for a, b, c in coefficients:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def muon_update(
    params: Tensor, grads: Tensor, momentum_buffer: Tensor, second_moment: Tensor | None, lr: Tensor, momentum: Tensor,
    decay: Tensor, beta2: Tensor, apply: Tensor, dtype: torch.dtype, plain: bool,
) -> None:  # fmt: skip
    """One Muon step on a stack of equal shapes (K, m, n), in place on params and both moments.

    Nesterov momentum -> row equilibration (arXiv 2603.28254) -> Polar Express in dtype -> Frobenius norm
    snapped to sqrt(min(m, n)) (arXiv 2602.21545) -> factored second moment (arXiv 2510.05491) -> decay only
    where update and weight agree in sign. plain: momentum -> Newton-Schulz -> plain decay.
    apply () is 1, or 0 to leave everything as it is. lr holds the factor for tall matrices; plain decay is without
    it, as in torch.optim.Muon.
    """
    lr = lr * apply
    momentum_buffer.lerp_(grads, (1 - momentum) * apply)
    update = grads.lerp(momentum_buffer, momentum)
    if plain:
        x = update.to(dtype)
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
        update = orthogonalise(x, NEWTON_SCHULZ).to(params.dtype)
        params.mul_(1 - lr / shape_factor(params.shape) * decay).sub_(lr * update)
        return
    rows = update.shape[-2]
    row_norm = update.norm(dim=-1, keepdim=True)
    whole_norm = row_norm.square().sum(dim=-2, keepdim=True).sqrt()
    # after equilibration every row has norm whole / sqrt(m), so the stack's norm is unchanged: divide by it at once
    x = (update / (row_norm.clamp_min(1e-6) * (1.01 * rows**0.5) + 1e-12)).to(dtype)
    x = torch.where(whole_norm > 0, x, torch.zeros_like(x))
    update = orthogonalise(x, POLAR_EXPRESS).to(params.dtype)
    update = normalised_update(update, second_moment, (1 - beta2) * apply)
    agree = (update * params) >= 0
    params.sub_(lr * update + (lr * decay) * params * agree)


def normalised_update(update: Tensor, second_moment: Tensor | None, weight: Tensor) -> Tensor:
    """update (K, m, n) scaled per row or column by its running second moment, its norm kept.

    Frobenius norm sqrt(min(m, n)); weight () is the share of the new square in the running one.
    """
    assert second_moment is not None, "only plain Muon has no second moment"
    smaller = min(update.shape[-2:])
    snap = smaller**0.5 / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    along = -1 if update.shape[-2] >= update.shape[-1] else -2
    mean_square = update.square().mean(dim=along, keepdim=True) * snap.square()
    second_moment.lerp_(mean_square, weight)
    step_size = second_moment.clamp_min(1e-10).rsqrt()
    # the norm after scaling, from the factored moments alone: sum over rows of n * mean square * size squared
    width = update.shape[along]
    scaled_norm = (mean_square * width * step_size.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    return update * (snap * step_size * (smaller**0.5 / scaled_norm.clamp_min(1e-10)))
