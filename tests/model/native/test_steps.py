"""Packed products for generation against plain ones: right for every size, and a row is its own affair"""

import pytest
import torch

from intone.config import model_config
from intone.model.native import build
from intone.model.native.steps import Packed, step_obstacle, summary

pytestmark = pytest.mark.skipif(
    build.obstacle("generate") is not None, reason=f"no kernels here: {build.obstacle('generate')}"
)

# rows, outputs, channels: around tiles of 16 columns, 1 to 6 rows, and chunks of 512 channels
SIZES = [(1, 40, 32), (2, 16, 16), (3, 100, 528), (5, 33, 64), (7, 1, 48), (13, 100, 1040), (31, 257, 80)]


def sample(size):
    rows, num_out, num_in = size
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, num_in, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    return x, torch.randn(num_out, num_in, generator=generator)


def in_eight_bits(weight):
    reach = weight.abs().amax(1, keepdim=True)
    return (weight * (127 / reach)).round() * (reach / 127)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stored_as", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("uses_512", [False, True])
def test_a_product_is_that_of_the_stored_weights(size, stored_as, uses_512):
    if uses_512 and build.obstacle("linear") is not None:
        pytest.skip(str(build.obstacle("linear")))
    x, weight = sample(size)
    rounded = {"fp32": weight, "bf16": weight.bfloat16().float(), "int8": in_eight_bits(weight)}[stored_as].double()
    # 8 bits take x in steps of its row's reach / 32,767; processors with AVX-512 round it to bfloat16
    step = x.double().abs().amax(1, keepdim=True) / 32767
    loss = 2**-8 * (x.double().abs() @ rounded.abs().t()) if uses_512 else 0
    bound = loss + step * rounded.abs().sum(1) * (stored_as == "int8") + 2e-6 * (x.double().abs() @ rounded.abs().t())
    found = Packed(weight, stored_as, wide=uses_512)(x)
    assert ((found - x.double() @ rounded.t()).abs() <= bound).all()


@pytest.mark.parametrize("stored_as", ["fp32", "bf16", "int8"])
def test_a_rows_bits_do_not_depend_on_how_many_rows_there_are(stored_as):
    x, weight = sample((31, 257, 528))
    linear = Packed(weight, stored_as)
    together = linear(x)
    for count in (1, 2, 3, 4, 5, 6, 7, 9, 15):
        assert torch.equal(linear(x[5 : 5 + count]), together[5 : 5 + count])


@pytest.mark.parametrize("stored_as", ["fp32", "bf16", "int8"])
def test_some_columns_and_the_square_of_what_is_positive(stored_as):
    x, weight = sample((5, 64, 48))
    whole = Packed(weight, stored_as)(x)
    assert torch.equal(Packed(weight, stored_as, columns=41)(x), whole[:, :41])
    assert torch.equal(Packed(weight, stored_as)(x, squared_relu=True), whole.clamp_min(0).square())
    assert not Packed(torch.zeros(20, 32), stored_as)(torch.ones(3, 32)).any()
    assert not Packed(torch.ones(20, 32), stored_as)(torch.zeros(3, 32)).any()


@pytest.mark.parametrize("stored_as", ["fp32", "bf16", "int8"])
def test_a_number_that_is_not_finite_does_not_become_one(stored_as):
    x, weight = torch.ones(3, 48), torch.randn(20, 48)
    x[0, 5], x[1, 40] = torch.nan, torch.inf
    found = Packed(weight, stored_as)(x)
    assert not found[:2].isfinite().any() and found[2].isfinite().all()


def test_bytes_that_a_step_reads():
    weight = torch.randn(512, 256)
    assert Packed(weight, "fp32").num_bytes == 4 * 512 * 256
    assert Packed(weight, "bf16").num_bytes == 2 * 512 * 256
    assert Packed(weight, "int8", wide=False).num_bytes == 512 * 256 + 4 * 512


def test_shapes_that_do_not_fit_are_named():
    assert step_obstacle(model_config("modern", depth=4, vocab_size=100, context=64)) is None
    assert "head width" in step_obstacle(model_config("modern", depth=4, vocab_size=100, context=64, head_width=24))


@pytest.mark.parametrize("columns", [1, 7, 256, 257, 1000])
def test_a_summary_of_logits_is_the_largest_the_first_of_them_and_the_sum_of_the_rest(columns):
    logits = torch.randn(9, columns, generator=torch.Generator().manual_seed(columns)) * 4
    logits[1] = 2.5  # all are the largest
    logits[2, columns // 2 :] = logits[2].max() + 1  # the first of several
    logits[3, columns - 1] = torch.nan
    best, largest, total = summary(logits)
    expected = logits.double()
    good = [0, 1, 2, 4, 5, 6, 7, 8]
    assert best[good].tolist() == expected.argmax(-1)[good].tolist()
    assert largest[good].tolist() == logits.amax(-1)[good].tolist() and largest[3] != largest[3]
    sums = (expected - expected.amax(-1, keepdim=True)).exp().sum(-1)
    assert total[good] == pytest.approx(sums[good].numpy(), rel=1e-6)
    for row in good:  # alone as in company
        alone = summary(logits[row : row + 1])
        assert (alone[0][0], alone[1][0], alone[2][0]) == (best[row], largest[row], total[row])
