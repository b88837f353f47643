"""The optimizer: the plain forms equal PyTorch's own, the rest does what its papers say, a resume is exact."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from intone.config import OptimConfig, model_config
from intone.model.gpt import GPT
from intone.model.optim import (
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    Optimizer,
    StepScale,
    orthogonalise,
    parameter_groups,
)

SCALE = StepScale(lr=0.7, momentum=0.9, weight_decay=0.5)


def fill_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_every_parameter_is_in_exactly_one_group(random_model, preset):
    model = random_model(preset)
    groups = parameter_groups(model, OptimConfig())
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    members = [id(parameter) for group in groups for parameter in group.params]
    assert len(set(members)) == len(names)
    matrices = [name for group in groups if group.kind == "muon" for name in group.names]
    assert all(name.startswith("blocks.") for name in matrices)
    assert all(len({p.shape for p in group.params}) == 1 for group in groups if group.kind == "muon")


def test_rates_scale_with_width_and_with_the_height_of_a_matrix():
    with torch.device("meta"):
        model = GPT(model_config("modern", depth=3, vocab_size=61, context=45))
    groups = {group.names[0]: group for group in parameter_groups(model, OptimConfig())}
    by_width = (192 / 768) ** -0.5
    assert groups["head.weight"].lr == pytest.approx(0.008 * by_width)
    assert groups["embedding.weight"].lr == pytest.approx(0.3 * by_width)
    assert groups["residual_scale"].lr == 0.005  # scalars do not
    by_shape = {tuple(group.params[0].shape): group.lr for group in groups.values() if group.kind == "muon"}
    assert by_shape[(768, 192)] == pytest.approx(0.02 * 2)
    assert by_shape[(192, 768)] == by_shape[(192, 192)] == 0.02


# --- against PyTorch ------------------------------------------------------------------------------


def test_plain_muon_equals_torchs(random_model, monkeypatch):
    # torch's orthogonalises in bfloat16 always: without it the two agree to float32 rounding
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    config = OptimConfig(plain_muon=True)
    ours, theirs = random_model(), random_model()
    optimizer = Optimizer(ours, config)
    matrices = [parameter for _, parameter in theirs.matrices()]
    reference = torch.optim.Muon(
        matrices, lr=config.matrix_lr * SCALE.lr, momentum=SCALE.momentum,
        weight_decay=config.weight_decay * SCALE.weight_decay,
    )  # fmt: skip
    for step in range(5):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        optimizer.step(SCALE)
        reference.step()
    moved = weights(ours)
    begin = weights(random_model())
    for name, parameter in theirs.matrices():
        assert (moved[name] - begin[name]).abs().max() > 1e-3
        assert_close(moved[name], parameter.detach(), atol=1e-6, rtol=1e-5)


def test_tables_head_and_scalars_are_trained_as_by_torchs_adamw(random_model):
    ours, theirs = random_model(), random_model()
    optimizer = Optimizer(ours, OptimConfig())
    named = dict(theirs.named_parameters())
    groups = [group for group in optimizer.groups if group.kind == "adamw"]
    reference = torch.optim.AdamW(
        [
            {"params": [named[n] for n in g.names], "betas": g.betas, "eps": g.eps, "weight_decay": g.weight_decay}
            for g in groups
        ]
    )
    for step, lr in enumerate((0.3, 1.0, 0.7, 0.05)):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        optimizer.step(dataclasses.replace(SCALE, lr=lr))
        for group, param_group in zip(groups, reference.param_groups, strict=True):
            param_group["lr"] = group.lr * lr
        reference.step()
    for group in groups:
        for name, parameter in zip(group.names, group.params, strict=True):
            assert_close(parameter.detach(), named[name].detach(), atol=2e-6, rtol=1e-5)


# --- Muon as we train with it ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(17, 40), (40, 17), (23, 23)])
@pytest.mark.parametrize(
    ("coefficients", "low", "high"),
    [(POLAR_EXPRESS, 0.8, 1.2), (NEWTON_SCHULZ, 0.65, 1.25)],  # five steps each: both stop near one by design
)
def test_orthogonalise_gives_singular_values_near_one(shape, coefficients, low, high):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True))
    y = orthogonalise(x, coefficients)
    assert y.shape == x.shape
    values = torch.linalg.svdvals(y)
    assert low < values.min() and values.max() < high
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    nearest = u @ vt
    assert ((y * nearest).sum((-2, -1)) / (y.norm(dim=(-2, -1)) * nearest.norm(dim=(-2, -1))) > 0.98).all()


@pytest.mark.parametrize("plain", [False, True])
def test_a_muon_step_has_the_size_of_its_rate_whatever_the_gradients_size(random_model, plain):
    """Without decay a matrix (m, n) moves by lr * sqrt(min(m, n)) in Frobenius norm."""
    for size in (1e-6, 1e3):
        model = random_model()
        optimizer = Optimizer(model, OptimConfig(weight_decay=0.0, plain_muon=plain))
        begin = weights(model)
        fill_gradients(model, 0)
        for parameter in model.parameters():
            parameter.grad *= size
        optimizer.step(SCALE)
        for group in optimizer.groups:
            if group.kind == "muon":
                for name, parameter in zip(group.names, group.params, strict=True):
                    moved = (parameter.detach() - begin[name]).norm()
                    expected = group.lr * SCALE.lr * min(parameter.shape) ** 0.5
                    assert_close(moved, torch.tensor(expected), rtol=0.3 if plain else 1e-4, atol=0)


def test_decay_is_cautious():
    """A weight decays only where the update goes the same way as the weight, that is where both shrink it."""
    model = GPT(model_config("classic", depth=1, vocab_size=61, context=45))
    model.init_weights(0)
    states = []
    for decay in (0.0, 0.9):
        model.init_weights(0)
        optimizer = Optimizer(model, OptimConfig(weight_decay=decay))
        fill_gradients(model, 1)
        optimizer.step(StepScale(lr=1.0, momentum=0.0, weight_decay=1.0))
        states.append(model.blocks[0].attention.q.weight.detach().clone())
    model.init_weights(0)
    begin = model.blocks[0].attention.q.weight.detach()
    update = (begin - states[0]) / 0.02
    agree = update * begin >= 0
    assert 0.3 < agree.float().mean() < 0.7
    expected = states[0] - 0.02 * 0.9 * begin * agree
    assert_close(states[1], expected, atol=1e-7, rtol=0)


def test_rows_with_large_gradients_are_evened_out_over_time(random_model):
    """The factored second moment: a row whose update stays small catches up, and the norm of the step stays."""
    model = random_model()
    optimizer = Optimizer(model, OptimConfig(weight_decay=0.0))
    group = next(g for g in optimizer.groups if g.kind == "muon" and g.params[0].shape[0] > g.params[0].shape[1])
    for step in range(6):
        begin = group.params[0].detach().clone()
        fill_gradients(model, step)
        group.params[0].grad[:5] *= 100
        optimizer.step(SCALE)
    moved = begin - group.params[0].detach()
    per_row = moved.norm(dim=1)
    assert per_row.max() / per_row.min() < 2
    assert group.state["second_moment"].shape == (len(group.params), moved.shape[0], 1)


def test_matrices_without_gradient_signal_stay_where_they_are(random_model):
    """A zero gradient must not become noise of full size, nor NaN."""
    model = random_model()
    optimizer = Optimizer(model, OptimConfig(weight_decay=0.0))
    begin = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(SCALE)
    after = weights(model)
    for name, _ in model.matrices():
        assert torch.equal(after[name], begin[name])


def test_matrices_are_orthogonalised_in_the_computations_dtype_or_float32(random_model):
    model = random_model()
    assert Optimizer(model, OptimConfig()).orthogonalise_dtype == torch.float32
    model.compute_dtype = torch.bfloat16
    assert Optimizer(model, OptimConfig()).orthogonalise_dtype == torch.bfloat16
    model.compute_dtype = torch.float16
    assert Optimizer(model, OptimConfig()).orthogonalise_dtype == torch.float32


# --- steps that do not count, and resuming --------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_a_step_that_is_not_finite_changes_nothing_and_frees_the_gradients(random_model, value, plain):
    model = random_model()
    optimizer = Optimizer(model, OptimConfig(plain_muon=plain))
    fill_gradients(model, 0)
    optimizer.step(SCALE)
    before, state = weights(model), {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step(SCALE, torch.tensor(False))
    assert_same(weights(model), before)
    after = optimizer.state_tensors()
    assert after.pop("num_steps") == state.pop("num_steps") + 1
    assert_same(after, state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_first_step_that_is_not_finite_changes_nothing_either(random_model):
    model = random_model()
    optimizer = Optimizer(model, OptimConfig())
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step(SCALE, torch.tensor(False))
    assert_same(weights(model), before)


def test_a_finite_step_is_the_same_with_and_without_the_question(random_model):
    seen = []
    for finite in (None, torch.tensor(True)):
        model = random_model()
        optimizer = Optimizer(model, OptimConfig())
        for step in range(3):
            fill_gradients(model, step)
            optimizer.step(SCALE, finite)
        seen.append(weights(model))
    assert_same(*seen)


def test_a_parameter_without_gradient_stays(random_model):
    model = random_model()
    optimizer = Optimizer(model, OptimConfig())
    before = weights(model)
    fill_gradients(model, 0)
    model.embedding.weight.grad = None
    optimizer.step(SCALE)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == before.keys() - {"embedding.weight"}


@pytest.mark.parametrize("plain", [False, True])
def test_a_restored_state_goes_on_bitwise(random_model, plain):
    config = OptimConfig(plain_muon=plain)
    first, second = random_model(), random_model(seed=9)
    undisturbed = Optimizer(first, config)
    for step in range(3):
        fill_gradients(first, step)
        undisturbed.step(SCALE)
    restored = Optimizer(second, config)
    second.load_state_dict(weights(first))
    restored.load_state_tensors({name: tensor.clone() for name, tensor in undisturbed.state_tensors().items()})
    for step in range(3, 6):
        for model, optimizer in ((first, undisturbed), (second, restored)):
            fill_gradients(model, step)
            optimizer.step(SCALE)
    assert_same(weights(first), weights(second))
    assert_same(undisturbed.state_tensors(), restored.state_tensors())


def test_the_state_of_another_model_is_refused(random_model):
    state = Optimizer(random_model(), OptimConfig()).state_tensors()
    with pytest.raises(KeyError):
        Optimizer(random_model(), OptimConfig()).load_state_tensors(dict(list(state.items())[:-1]))
    with pytest.raises(RuntimeError):
        Optimizer(random_model(mlp_ratio=2), OptimConfig()).load_state_tensors(state)
