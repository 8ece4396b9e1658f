"""The larger products by oneDNN: the same numbers as torch's own, at every layout that the nodes hand over."""

import pytest
import torch
import torch.nn.functional as F

from alloralib import fast_paths
from alloralib.ops import products, reference
from alloralib.ops.cross_entropy import linear_cross_entropy
from alloralib.ops.linear import LinearLayer, lora_linears

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def _random(seed: int, *shape: int, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def counted(monkeypatch):
    """How often oneDNN was called, with every product large enough for it, on a processor that it is faster on."""
    monkeypatch.setattr(products, "by_default", lambda: True)
    return _count(monkeypatch)


def _count(monkeypatch):
    calls = []
    operator = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(products, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *a: (calls.append(a), operator(*a))[1])
    return calls


@needs_onednn
@pytest.mark.parametrize("rows", [1, 7, 130])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["plain", "transposed", "columns", "strided rows"])
def test_a_product_is_the_exact_one_rounded(counted, rows, bias, layout):
    x, w = _random(0, rows, 48), _random(1, 40, 48)
    if layout == "transposed":
        w = w.mT.contiguous().mT
    elif layout == "columns":
        w = _random(1, 40, 96)[:, ::2]
    elif layout == "strided rows":
        x = _random(0, rows, 96)[:, 20:68]
    b = _random(2, 40) if bias else None
    exact = F.linear(x.double(), w.double(), None if b is None else b.double())
    torch.testing.assert_close(products.linear(x, w, b).double(), exact, rtol=1e-5, atol=1e-5)
    assert len(counted) == 1


@needs_onednn
@pytest.mark.parametrize("m", [3, 40])
@pytest.mark.parametrize("strided", [False, True])
def test_an_inner_product_is_the_exact_one_rounded(counted, m, strided):
    left, right = _random(0, 130, 90)[:, 5 : 5 + m] if strided else _random(0, 130, m), _random(1, 130, 16)
    found = products.inner(left, right)
    assert found.is_contiguous()
    assert len(counted) == 1
    torch.testing.assert_close(found.double(), left.double().mT @ right.double(), rtol=1e-5, atol=1e-5)
    with fast_paths(onednn=False):
        assert torch.equal(products.inner(left, right), left.mT @ right)
    assert len(counted) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs_own(counted, dtype):
    x, w = _random(0, 9, 16, dtype=dtype), _random(1, 8, 16, dtype=dtype)
    assert torch.equal(products.linear(x, w), F.linear(x, w))
    assert not counted


def test_no_rows_and_small_products_are_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    assert products.linear(_random(0, 0, 16), _random(1, 8, 16)).shape == (0, 8)
    assert products.linear(_random(0, 5, 16), _random(1, 8, 16)).shape == (5, 8)


@needs_onednn
def test_the_switch_turns_it_off_and_on_again(counted):
    x, w = _random(0, 9, 16), _random(1, 8, 16)
    with fast_paths(onednn=False):
        assert torch.equal(products.linear(x, w), F.linear(x, w))
        assert not counted
        with fast_paths():
            products.linear(x, w)
            assert len(counted) == 1
    products.linear(x, w)
    assert len(counted) == 2


@needs_onednn
@pytest.mark.parametrize(("capability", "taken"), [("AVX512", True), ("AVX2", False)])
def test_the_processor_decides_unless_it_is_said(monkeypatch, capability, taken):
    calls = _count(monkeypatch)
    products.by_default.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, w = _random(0, 9, 16), _random(1, 8, 16)
    try:
        products.linear(x, w)
        products.inner(x, x)
        assert len(calls) == 2 * taken
        with fast_paths(onednn=True):
            products.linear(x, w)
        assert len(calls) == 2 * taken + 1
        monkeypatch.setattr(products, "LARGE", w.numel())  # a size from which it is the faster one everywhere
        products.linear(x, w)
        products.inner(x, x)
        assert len(calls) == 4 * taken + 1 + (not taken)
        with fast_paths(onednn=False):
            products.linear(x, w)
        assert len(calls) == 4 * taken + 1 + (not taken)
    finally:
        products.by_default.cache_clear()


@needs_onednn
@pytest.mark.parametrize(
    ("shape", "transposed", "taken"),
    [
        ((40, 48), False, True),
        ((48, 40), False, True),
        ((40, 48), True, True),
        ((48, 40), True, False),
        ((39, 80), True, False),
        ((9, 40), False, False),
    ],
    ids=["narrowing", "widening", "narrowing, transposed", "widening, transposed", "narrow, transposed", "small"],
)
def test_large_weights_are_taken_on_any_processor_but_for_the_transposed_that_widen(monkeypatch, shape, transposed, taken):
    calls = _count(monkeypatch)
    monkeypatch.setattr(products, "by_default", lambda: False)
    monkeypatch.setattr(products, "LARGE", 40 * 48)
    monkeypatch.setattr(products, "LEAST_TRANSPOSED", 40)
    w = _random(1, *shape)
    x, total = _random(0, 7, shape[1]), _random(2, 7, shape[0])
    products.linear(x, w.mT.contiguous().mT if transposed else w)
    products.add_linear_(total, x, w.mT.contiguous().mT if transposed else w)
    assert len(calls) == 2 * taken


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_added_in_place(monkeypatch, wanted, dtype):
    monkeypatch.setattr(products, "LEAST_PRODUCTS", 1)
    x, w, total = (_random(k, *shape, dtype=dtype) for k, shape in enumerate(((9, 16), (8, 16), (9, 8))))
    exact = total.double() + x.double() @ w.double().mT
    with fast_paths(onednn=wanted):
        assert products.add_linear_(total, x, w) is total
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_wide_inner_product_is_torchs_own(counted):
    narrow, wide = _random(0, 30, products.WIDEST_INNER), _random(1, 30, products.WIDEST_INNER + 1)
    assert torch.equal(products.inner(wide, wide), wide.mT @ wide)
    assert not counted
    products.inner(wide, narrow)
    assert len(counted) == 1


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_grouped_layers_are_the_twins(counted, transposed):
    x = _random(0, 3, 11, 24).requires_grad_()
    shapes = [(32, 4), (16, 2), (24, 3)]
    layers = [
        LinearLayer(
            _random(9 * k + 1, *((24, n1) if transposed else (n1, 24))), _random(9 * k + 2, n1) if k else None,
            _random(9 * k + 3, r, 24).requires_grad_(), _random(9 * k + 4, n1, r).requires_grad_(), eta=0.5 + k,
        )
        for k, (n1, r) in enumerate(shapes)
    ]  # fmt: skip
    seeds = [_random(100 + k, 3, 11, n1) for k, (n1, _) in enumerate(shapes)]
    leaves = [x, *(t for layer in layers for t in (layer.A, layer.B))]
    fast = torch.autograd.grad(lora_linears(x, layers, fan_in_fan_out=transposed), leaves, seeds)
    # each layer's frozen product forward and backward, its P and its G^T H; H and P^T X of all together
    assert len(counted) == 3 * 4 + 2
    wide = [t.detach().double().requires_grad_() for t in leaves]
    slow = torch.autograd.grad(
        [
            reference.linear(
                wide[0], layer.weight.double(), None if layer.bias is None else layer.bias.double(),
                wide[2 * k + 1], wide[2 * k + 2], eta=layer.eta, fan_in_fan_out=transposed,
            )
            for k, layer in enumerate(layers)
        ],
        wide, [s.double() for s in seeds],
    )  # fmt: skip
    for name, a, b in zip(["x", "A1", "B1", "A2", "B2", "A3", "B3"], fast, slow, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@needs_onednn
def test_cross_entropy_in_tiles_is_the_twins(counted):
    x, w, b = _random(0, 13, 16).requires_grad_(), _random(1, 50, 16), _random(2, 50)
    labels = torch.arange(13) * 3
    found = linear_cross_entropy(x, w, b, labels, entries=13 * 20)
    (fast,) = torch.autograd.grad(found.loss.sum(), x)
    assert len(counted) == 6  # three tiles, the logits and the way back
    wide = x.detach().double().requires_grad_()
    loss = reference.cross_entropy(wide, w.double(), b.double(), labels)
    (slow,) = torch.autograd.grad(loss.sum(), wide)
    torch.testing.assert_close(found.loss.double(), loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5)
