"""Our CPU kernels against plain PyTorch: the same losses and gradients, and what they refuse."""

import dataclasses

import pytest
import torch

from intone.config import OptimConfig, model_config
from intone.model.gpt import GPT
from intone.model.native import build, ops
from intone.model.native.ops import HeadLoss, NarrowWeights, call
from intone.model.optim import POLAR_EXPRESS, Optimizer, StepScale, native_orthogonalise, orthogonalise


def only_where(variant):
    reason = build.obstacle(variant)
    return pytest.mark.skipif(reason is not None, reason=f"no kernels here: {reason}")


BFLOAT16 = pytest.param(torch.bfloat16, marks=only_where("avx512_bf16"), id="bf16")
FLOAT32 = pytest.param(torch.float32, marks=only_where("avx2"), id="fp32")
both = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])

VOCAB, ROWS, POSITIONS = 301, 3, 77  # no multiples of the kernels' 16, 32 and 128
# preset, depth, head width, key heads: grouped keys, one block, the window's edge, no value embeddings
SHAPES = [("modern", 4, 32, None), ("modern", 1, 16, 2), ("modern", 3, 64, 1), ("classic", 3, 64, None)]


@pytest.fixture(autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_model(shape, dtype, kernels):
    """A model whose every parameter, scalars and output projections too, is away from its start."""
    preset, depth, head_width, kv_heads = shape
    config = model_config(
        preset, depth=depth, vocab_size=VOCAB, context=80, head_width=head_width, num_kv_heads=kv_heads
    )
    model = GPT(dataclasses.replace(config, short_window=19))
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1 * (p.abs().mean() + 0.2))
    model.compute_dtype, model.kernels = dtype, kernels
    return model


@pytest.fixture(scope="module")
def batch():
    """ids, targets of which a third is not learned, and segments of the rows."""
    generator = torch.Generator().manual_seed(2)
    ids, targets = torch.randint(VOCAB, (2, ROWS, POSITIONS), generator=generator, dtype=torch.int32)
    targets = targets.masked_fill(torch.rand(ROWS, POSITIONS, generator=generator) < 0.3, -1)
    documents = (torch.rand(ROWS, POSITIONS, generator=generator) < 0.06).cumsum(1).int()
    return ids, targets, documents


def gradients(model, batch):
    loss_sum, num_supervised = model(*batch)
    (loss_sum / num_supervised).backward()
    return loss_sum.item() / num_supervised.item(), {name: p.grad for name, p in model.named_parameters()}


def distance(a, b):
    return ((a.to(b.dtype) - b).norm() / b.norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize("shape", SHAPES)
@both
def test_losses_and_gradients_are_as_near_to_exact_ones_as_pytorchs(shape, batch, dtype):
    exact_loss, exact = gradients(make_model(shape, torch.float64, "torch"), batch)
    plain_loss, plain = gradients(make_model(shape, dtype, "torch"), batch)
    loss, ours = gradients(make_model(shape, dtype, "native"), batch)
    rounding = 1e-3 if dtype == torch.bfloat16 else 2e-7
    assert abs(loss - exact_loss) < max(2 * abs(plain_loss - exact_loss), rounding * exact_loss)
    size = sum(g.norm() ** 2 for g in exact.values()) ** 0.5
    for name, gradient in exact.items():
        # scalars whose gradients nearly cancel are rounding in both: they count by what they are of the whole
        error = (ours[name].float() - gradient).norm() / size
        allowed = (plain[name].float() - gradient).norm() / size
        assert error < 1.5 * allowed + rounding, name


@both
def test_rows_in_which_all_is_learned_take_the_other_way_to_the_same_gradients(batch, dtype):
    """Only where some tokens are not learned the last block leaves them out."""
    ids, _, documents = batch
    whole = (ids, ids.roll(-1, 1), documents)
    exact_loss, exact = gradients(make_model(SHAPES[0], torch.float64, "torch"), whole)
    loss, ours = gradients(make_model(SHAPES[0], dtype, "native"), whole)
    assert loss == pytest.approx(exact_loss, rel=3e-3 if dtype == torch.bfloat16 else 1e-6)
    size = sum(g.norm() ** 2 for g in exact.values()) ** 0.5
    for name, gradient in exact.items():
        assert (ours[name].float() - gradient).norm() / size < (0.02 if dtype == torch.bfloat16 else 1e-5), name


@both
def test_a_row_in_which_nothing_is_learned_changes_no_gradient(batch, dtype):
    ids, targets, documents = batch
    model = make_model(SHAPES[0], dtype, "native")
    _, alone = gradients(model, batch)
    model.zero_grad()
    more = [torch.cat((x, x[:1])) for x in (ids, targets, documents)]
    more[1][-1] = -1
    _, padded = gradients(model, more)
    for name, gradient in alone.items():
        # sums over rows are cut elsewhere when there are more rows: rounding, not another value
        assert distance(padded[name], gradient) < (0.01 if dtype == torch.bfloat16 else 1e-4), name


@both
def test_the_same_batch_gives_the_same_bits_twice(batch, dtype):
    (loss, grads), (again, grads_again) = (gradients(make_model(SHAPES[0], dtype, "native"), batch) for _ in range(2))
    assert loss == again
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


@pytest.mark.parametrize(("vocab", "width"), [(37, 64), (301, 320), (16, 16)])
@both
def test_the_loss_of_any_vocabulary_equals_softcapped_cross_entropy(vocab, width, dtype):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(21, 48, generator=generator).to(dtype).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(width, 48, generator=generator))
    targets = torch.randint(vocab, (21,), generator=generator, dtype=torch.int32)
    targets[::5] = -1
    loss = HeadLoss.apply(x, weight, NarrowWeights()(weight, dtype=dtype), targets, vocab, 15.0)
    loss.backward()
    ours = (x.grad.float(), weight.grad.clone())
    wide_x, wide = x.detach().float().requires_grad_(), weight.detach().to(dtype).float().requires_grad_()
    logits = 15 * torch.tanh((wide_x @ wide.t())[:, :vocab] / 15)
    expected = torch.nn.functional.cross_entropy(logits, targets.long(), ignore_index=-1, reduction="sum")
    expected.backward()
    coarse = dtype == torch.bfloat16  # logits are rounded to 8 bits
    assert loss.item() == pytest.approx(expected.item(), rel=3e-3 if coarse else 2e-6)
    assert distance(ours[0], wide_x.grad) < (0.01 if coarse else 1e-5)
    assert distance(ours[1], wide.grad) < (0.01 if coarse else 1e-5)
    assert not ours[1][vocab:].any()


@both
def test_tokens_whose_losses_count_differently_have_the_gradients_of_the_weighted_sum(batch, dtype):
    """Pushed away, taken out, taken double: against PyTorch's operations on the same weights."""
    counts = torch.tensor([-0.75, 0.0, 2.0]).repeat(ROWS * POSITIONS)[: ROWS * POSITIONS].view(ROWS, POSITIONS)
    seen = []
    for kernels in ("torch", "native"):
        model = make_model(SHAPES[0], torch.float32 if kernels == "torch" else dtype, kernels)
        loss, _ = model(*batch, counts)
        loss.backward()
        seen.append((loss.item(), model))
    (expected, plain), (ours, native) = seen
    coarse = dtype == torch.bfloat16
    assert ours == pytest.approx(expected, rel=0.02 if coarse else 1e-4)
    size = sum(p.grad.norm() ** 2 for p in plain.parameters() if p.grad is not None) ** 0.5
    for p, q in zip(plain.parameters(), native.parameters(), strict=True):
        assert (p.grad - q.grad).norm() / size < (0.03 if coarse else 1e-5)


@both
def test_a_batch_without_anything_to_learn_costs_nothing_and_has_no_gradient(batch, dtype):
    model = make_model(SHAPES[1], dtype, "native")
    loss_sum, num_supervised = model(batch[0], torch.full_like(batch[1], -1), None)
    loss_sum.backward()
    assert (loss_sum.item(), num_supervised.item()) == (0.0, 0)
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]])
@pytest.mark.parametrize("weight_decay", [0.0, 0.28])
@both
def test_updates_equal_the_plain_optimizer(shape, weight_decay, dtype):
    models = [make_model(shape, dtype, "torch") for _ in range(2)]
    start = [p.detach().clone() for p in models[0].parameters()]
    optimizers = [Optimizer(model, OptimConfig(weight_decay=weight_decay)) for model in models]
    optimizers[1].kernels = "native"
    generator = torch.Generator().manual_seed(5)
    for step in range(3):
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step(StepScale(1.0, 0.9, 0.5 * step))
    for (name, p), q, before in zip(models[0].named_parameters(), models[1].parameters(), start, strict=True):
        # the orthogonal factors are rounded in both, in another order; where that turns the sign of an entry near zero,
        # the weight decays in one and not in the other
        fine = 1e-3 if weight_decay else 1e-5
        assert distance(q.detach() - before, (p - before).detach()) < (0.02 if dtype == torch.bfloat16 else fine), name


@only_where("avx2")
@pytest.mark.parametrize(
    "size", [(37, 12), (12, 37), (65, 65), (40, 33), (33, 270), (270, 17), (1, 5), (257, 270), (700, 260)]
)
def test_matrices_are_made_orthogonal_as_exactly_as_by_pytorch(size):
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(6))
    x = x / x.norm(dim=(-2, -1), keepdim=True) / 1.01
    exact = orthogonalise(x.double(), POLAR_EXPRESS)
    plain, ours = (
        (way - exact).norm() / exact.norm()
        for way in (orthogonalise(x, POLAR_EXPRESS), native_orthogonalise(x.clone()))
    )
    assert ours < 1.5 * plain + 2e-6  # long matrices by another way to multiply, whose rounding is of the same size


@only_where("avx2")
@pytest.mark.parametrize("size", [(65, 65), (33, 270), (270, 17), (530, 524)])  # the last: all threads on one matrix
def test_a_matrix_is_made_orthogonal_to_the_same_bits_by_any_number_of_threads_and_in_any_stack(size):
    x = torch.randn(3, *size, generator=torch.Generator().manual_seed(6)) / (size[0] * size[1]) ** 0.5
    stacks = [native_orthogonalise(x.clone())]  # two matrices by a thread each, the third by both
    torch.set_num_threads(1)
    stacks.append(native_orthogonalise(x.clone()))
    torch.set_num_threads(4)
    stacks.append(torch.cat([native_orthogonalise(matrix[None].clone()) for matrix in x]))
    assert all(torch.equal(stack, stacks[0]) for stack in stacks)


@both
def test_a_gradient_of_zeros_moves_no_matrix_but_by_its_decay(dtype):
    model = make_model(SHAPES[1], dtype, "native")
    optimizer = Optimizer(model, OptimConfig(weight_decay=0.0))
    optimizer.kernels = "native"
    before = {name: p.detach().clone() for name, p in model.matrices()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(StepScale(1.0, 0.9, 1.0))
    assert all(torch.equal(p, before[name]) for name, p in model.matrices())


@only_where("avx512_bf16")
def test_narrow_weights_are_made_anew_after_an_update_and_not_before():
    model = make_model(SHAPES[1], torch.bfloat16, "native")
    optimizer = Optimizer(model, OptimConfig())
    optimizer.kernels = "native"
    weight = model.blocks[0].mlp.up.weight
    narrow = NarrowWeights()
    assert narrow(weight) is narrow(weight)
    old = narrow(weight)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(StepScale(1.0, 0.9, 1.0))
    assert narrow(weight) is not old
    assert torch.equal(narrow(weight), weight.detach().bfloat16())


@only_where("avx2")
def test_weights_side_by_side_are_made_anew_after_an_update_and_one_alone_is_no_copy():
    model = make_model(SHAPES[1], torch.float32, "native")
    optimizer = Optimizer(model, OptimConfig())
    optimizer.kernels = "native"
    attention, narrow = model.blocks[0].attention, NarrowWeights()
    weights = (attention.q.weight, attention.k.weight)
    old = narrow(*weights, dtype=torch.float32)
    assert narrow(*weights, dtype=torch.float32) is old
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(StepScale(1.0, 0.9, 1.0))
    assert torch.equal(narrow(*weights, dtype=torch.float32), torch.cat(weights))
    assert narrow(weights[0], dtype=torch.float32).data_ptr() == weights[0].data_ptr()


@both
def test_an_update_after_gradients_that_are_not_finite_changes_nothing(dtype):
    model = make_model(SHAPES[1], dtype, "native")
    optimizer = Optimizer(model, OptimConfig())
    optimizer.kernels = "native"
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step(StepScale(1.0, 0.9, 1.0), torch.tensor(False))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


@only_where("avx512_bf16")
def test_adding_a_narrow_part_reaches_the_last_value():
    total, part = torch.ones(37), torch.full((37,), 0.5).bfloat16()
    call("intone_add_narrow", total, part, 37)
    assert torch.equal(total, torch.full((37,), 1.5))


@only_where("avx2")
@pytest.mark.parametrize(
    "m, n, k", [(1, 16, 1), (7, 48, 33), (50, 16, 512), (100, 32, 513), (800, 16, 40), (49, 16, 2600)]
)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
def test_products_of_ours_equal_the_librarys(m, n, k, turned, b_turned, monkeypatch):
    monkeypatch.setattr(ops, "has_own_products", lambda: True)
    generator = torch.Generator().manual_seed(m + n + k)
    a, b, start = (torch.randn(*size, generator=generator) for size in ((m, k), (k, n), (m, n)))
    exact = a.double() @ b.double()
    a = a.t().contiguous().t() if turned else a
    b = b.t().contiguous().t() if b_turned else b
    room = torch.full((m + 1, n), 7.0)  # what lies behind the result stays
    near = {"atol": 2e-6 * k**0.5, "rtol": 1e-5}
    torch.testing.assert_close(ops.product(a, b, room[:m]).double(), exact, **near)
    room[:m] = start
    torch.testing.assert_close(ops.product(a, b, room[:m], add=True).double(), exact + start, **near)
    slope = torch.randn(m, n, generator=generator)
    ops.product(a, b, room[:m], squared=True, slope=slope)
    exact = (a.double().relu() ** 2 @ b.double()) * 2 * slope.double().relu()
    torch.testing.assert_close(room[:m].double(), exact, atol=2e-5 * k**0.5, rtol=1e-5)
    assert (room[m] == 7.0).all()
    torch.set_num_threads(1)
    assert torch.equal(ops.product(a, b, torch.empty(m, n)), ops.product(a, b, torch.empty(m, n)))
    alone = ops.product(a, b, torch.empty(m, n))
    torch.set_num_threads(2)
    assert torch.equal(alone, ops.product(a, b, torch.empty(m, n))), "threads change nothing"
    if not turned and m > 1:
        assert torch.equal(ops.product(a[:1], b, torch.empty(1, n)), alone[:1]), "nor do other rows"


@only_where("avx2")
@pytest.mark.parametrize("rows, width, columns", [(1, 16, 32), (70, 48, 16), (600, 64, 16), (33, 16, 800)])
def test_squared_relu_with_its_product_equals_one_after_the_other(rows, width, columns, monkeypatch):
    monkeypatch.setattr(ops, "has_own_products", lambda: True)
    generator = torch.Generator().manual_seed(rows)
    found = []
    for together in (False, True):
        generator.manual_seed(rows)
        x = torch.randn(rows, width, generator=generator).requires_grad_()
        weight = torch.randn(columns, width, generator=generator).requires_grad_()
        if together:
            out = ops.ReluSquareLinear.apply(x, weight.detach(), weight)
        else:
            out = ops.NarrowLinear.apply(ops.ReluSquare.apply(x), weight.detach(), weight)
        out.backward(torch.randn(rows, columns, generator=generator))
        found.append((out, x.grad, weight.grad))
    for one_by_one, at_once in zip(*found, strict=True):
        assert torch.equal(one_by_one, at_once) and at_once.is_contiguous()


@only_where("avx2")
@pytest.mark.parametrize("rows, columns", [(1, 1), (8, 8), (9, 17), (64, 30)])
def test_turning_a_matrix(rows, columns):
    x, out = torch.randn(rows, columns), torch.empty(columns, rows)
    call("intone_turn", x, out, rows, columns, variant="avx2")
    assert torch.equal(out, x.t())


@only_where("avx2")
def test_a_product_that_ours_cannot_do_goes_to_the_library(monkeypatch):
    monkeypatch.setattr(ops, "has_own_products", lambda: True)
    monkeypatch.setattr(ops, "call", None)  # not reached
    a, b = torch.randn(5, 8), torch.randn(8, 17)
    assert torch.equal(ops.product(a, b, torch.empty(5, 17)), a @ b)
    spread = torch.randn(5, 16)[:, ::2]
    torch.testing.assert_close(ops.product(spread, b[:, :16], torch.ones(5, 16), add=True), 1 + spread @ b[:, :16])
