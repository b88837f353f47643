import pytest
import torch

from intone.engine.products import TILE, can_pack, make_product

SHAPES = [(1, 64), (265, 48), (96, 200)]


def weight(num_out, num_in, dtype=torch.float32):
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(0)).to(dtype)


def rows(count, num_in, dtype=torch.float32):
    return torch.randn(count, num_in, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_the_matrix_product(dtype, relu, shape):
    w, x = weight(*shape, dtype), rows(7, shape[1], dtype)
    expected = x.double() @ w.double().T
    expected = expected.relu() if relu else expected
    got = make_product(w, relu=relu)(x)
    assert got.dtype == dtype
    # bfloat16 rounds the result to 8 bits; sums are at least float32 everywhere
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=0)


def test_weights_are_laid_out_beforehand_where_the_machine_can():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch was built without oneDNN")
    assert can_pack(weight(8, 8)) and not can_pack(weight(8, 8, torch.float64))


def test_a_product_keeps_the_weight_it_was_made_with():
    w, x = weight(32, 64), rows(3, 64)
    product, expected = make_product(w), x @ w.T
    if can_pack(w):
        w.zero_()
    torch.testing.assert_close(product(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_tiles_a_row_has_the_same_bits_in_any_company_and_place(dtype, shape):
    product = make_product(weight(*shape, dtype), tiled=True)
    x = rows(3 * TILE, shape[1], dtype)
    together = product(x)
    for place in (0, 5, TILE, 3 * TILE - 1):
        alone = torch.zeros(TILE, shape[1], dtype=dtype)
        alone[3] = x[place]
        assert torch.equal(product(alone)[3], together[place])
    with pytest.raises(AssertionError, match="17 rows are not whole tiles"):
        product(x[:17])
