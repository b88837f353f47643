"""Packed products against plain ones: right for every size, and a row does not depend on its neighbours."""

import pytest
import torch

from intone.model.native import build
from intone.model.native.linear import PackedLinear

OBSTACLE = build.obstacle("linear")
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"no kernels here: {OBSTACLE}")

# rows, outputs, channels: around the kernels' tiles of 16 and 32 columns and of 1, 2, 4, 6 and 8 rows
SIZES = [(1, 40, 32), (2, 16, 16), (5, 33, 64), (7, 1, 48), (13, 100, 48), (31, 257, 80)]


def sample(size):
    rows, num_out, num_in = size
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, num_in, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    return x.bfloat16(), torch.randn(num_out, num_in, generator=generator)


@pytest.mark.parametrize("size", SIZES)
def test_sixteen_bits_give_the_product_of_the_rounded_weights(size):
    x, weight = sample(size)
    exact = x.double() @ weight.bfloat16().double().t()
    found = PackedLinear(weight)(x, wide=True)
    assert ((found - exact).abs() <= 1e-5 * (x.double().abs() @ weight.double().abs().t())).all()


@pytest.mark.parametrize("size", SIZES)
def test_eight_bits_lose_only_what_the_weights_round_to(size):
    x, weight = sample(size)
    scale = weight.abs().amax(1, keepdim=True) / 127
    rounded = (weight / scale).round() * scale
    exact = x.double() @ rounded.double().t()
    found = PackedLinear(weight, bits=8)(x, wide=True)
    # x is taken in steps of its row's reach / 32,767
    reach = x.double().abs().amax(1, keepdim=True) / 32767
    assert ((found - exact).abs() <= reach * rounded.double().abs().sum(1) + 1e-5 * exact.abs() + 1e-9).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_rows_bits_do_not_depend_on_how_many_rows_there_are(bits):
    x, weight = sample((31, 257, 80))
    linear = PackedLinear(weight, bits=bits)
    together = linear(x, wide=True)
    for count in (1, 2, 3, 6, 9, 15):
        assert torch.equal(linear(x[5 : 5 + count], wide=True), together[5 : 5 + count])


@pytest.mark.parametrize("bits", [8, 16])
def test_the_narrow_result_is_the_wide_one_rounded_and_relu_is_applied_before(bits):
    x, weight = sample((5, 33, 64))
    linear = PackedLinear(weight, bits=bits)
    wide = linear(x, wide=True)
    assert torch.equal(linear(x), wide.bfloat16())
    assert torch.equal(linear(x, relu=True, wide=True), wide.clamp_min(0))


@pytest.mark.parametrize("bits", [8, 16])
def test_rows_and_weights_of_zeros_give_zeros(bits):
    linear = PackedLinear(torch.zeros(20, 32), bits=bits)
    assert not linear(torch.ones(3, 32, dtype=torch.bfloat16)).any()
    assert not PackedLinear(torch.ones(20, 32), bits=bits)(torch.zeros(3, 32, dtype=torch.bfloat16)).any()


def test_eight_bits_read_half_the_bytes():
    weight = torch.randn(512, 256)
    assert PackedLinear(weight).num_bytes == 512 * 256 * 2
    assert PackedLinear(weight, bits=8).num_bytes == 512 * 256 + 512 * 8


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_number_that_is_not_finite_does_not_become_one(bits, relu):
    x, weight = sample((5, 33, 64))
    x[0, 5] = torch.nan
    found = PackedLinear(weight, bits=bits)(x, relu=relu, wide=True)
    assert found[0].isnan().all() and found[1:].isfinite().all()
