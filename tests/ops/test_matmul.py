"""Large products by oneDNN: the same numbers as torch's own, for every memory layout that the nodes use."""

import pytest
import torch
import torch.nn.functional as F

from alloralib import fast_paths
from alloralib.ops import matmul, reference
from alloralib.ops.cross_entropy import linear_cross_entropy
from alloralib.ops.linear import lora_linear

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def _random(seed: int, *shape: int, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def counted(monkeypatch):
    """The calls of oneDNN, on a processor where it is faster, with every product large enough for it."""
    monkeypatch.setattr(matmul, "by_default", lambda: True)
    return _count(monkeypatch)


def _count(monkeypatch):
    calls = []
    operator = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(matmul, "LEAST_PRODUCTS", 1)
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
    torch.testing.assert_close(matmul.linear(x, w, b).double(), exact, rtol=1e-5, atol=1e-5)
    assert len(counted) == 1


@needs_onednn
@pytest.mark.parametrize("m", [3, 40])
@pytest.mark.parametrize("strided", [False, True])
def test_an_inner_product_is_the_exact_one_rounded(counted, m, strided):
    left, right = _random(0, 130, 90)[:, 5 : 5 + m] if strided else _random(0, 130, m), _random(1, 130, 16)
    found = matmul.inner(left, right)
    assert found.is_contiguous()
    assert len(counted) == 1
    torch.testing.assert_close(found.double(), left.double().mT @ right.double(), rtol=1e-5, atol=1e-5)
    with fast_paths(onednn=False):
        assert torch.equal(matmul.inner(left, right), left.mT @ right)
    assert len(counted) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs_own(counted, dtype):
    x, w = _random(0, 9, 16, dtype=dtype), _random(1, 8, 16, dtype=dtype)
    assert torch.equal(matmul.linear(x, w), F.linear(x, w))
    assert not counted


def test_no_rows_and_small_products_are_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    assert matmul.linear(_random(0, 0, 16), _random(1, 8, 16)).shape == (0, 8)
    assert matmul.linear(_random(0, 5, 16), _random(1, 8, 16)).shape == (5, 8)


@needs_onednn
def test_the_switch_turns_it_off_and_on_again(counted):
    x, w = _random(0, 9, 16), _random(1, 8, 16)
    with fast_paths(onednn=False):
        assert torch.equal(matmul.linear(x, w), F.linear(x, w))
        assert not counted
        with fast_paths():
            matmul.linear(x, w)
            assert len(counted) == 1
    matmul.linear(x, w)
    assert len(counted) == 2


@needs_onednn
@pytest.mark.parametrize(("capability", "taken"), [("AVX512", True), ("AVX2", False)])
def test_the_processor_decides_unless_the_switch_is_set(monkeypatch, capability, taken):
    calls = _count(monkeypatch)
    matmul.by_default.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, w = _random(0, 9, 16), _random(1, 8, 16)
    try:
        matmul.linear(x, w)
        matmul.inner(x, x)
        assert len(calls) == 2 * taken
        with fast_paths(onednn=True):
            matmul.linear(x, w)
        assert len(calls) == 2 * taken + 1
        monkeypatch.setattr(matmul, "LARGE", w.numel())  # a size from which it is the faster one everywhere
        matmul.linear(x, w)
        matmul.inner(x, x)
        assert len(calls) == 4 * taken + 1 + (not taken)
        with fast_paths(onednn=False):
            matmul.linear(x, w)
        assert len(calls) == 4 * taken + 1 + (not taken)
    finally:
        matmul.by_default.cache_clear()


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
def test_large_weights_use_onednn_on_any_processor_unless_transposed_and_widening(monkeypatch, shape, transposed, taken):
    calls = _count(monkeypatch)
    monkeypatch.setattr(matmul, "by_default", lambda: False)
    monkeypatch.setattr(matmul, "LARGE", 40 * 48)
    monkeypatch.setattr(matmul, "LEAST_TRANSPOSED", 40)
    w = _random(1, *shape)
    x, total = _random(0, 7, shape[1]), _random(2, 7, shape[0])
    matmul.linear(x, w.mT.contiguous().mT if transposed else w)
    matmul.add_linear_(total, x, w.mT.contiguous().mT if transposed else w)
    assert len(calls) == 2 * taken


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_added_in_place(monkeypatch, wanted, dtype):
    monkeypatch.setattr(matmul, "LEAST_PRODUCTS", 1)
    x, w, total = (_random(k, *shape, dtype=dtype) for k, shape in enumerate(((9, 16), (8, 16), (9, 8))))
    exact = total.double() + x.double() @ w.double().mT
    with fast_paths(onednn=wanted):
        assert matmul.add_linear_(total, x, w) is total
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_wide_inner_product_is_torchs_own(counted):
    narrow, wide = _random(0, 30, matmul.WIDEST_INNER), _random(1, 30, matmul.WIDEST_INNER + 1)
    assert torch.equal(matmul.inner(wide, wide), wide.mT @ wide)
    assert not counted
    matmul.inner(wide, narrow)
    assert len(counted) == 1


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_a_layer_are_the_twins(counted, transposed, bias):
    x, A, B = (_random(k, *shape).requires_grad_() for k, shape in enumerate([(3, 11, 24), (4, 24), (32, 4)]))
    W, b = _random(3, *((24, 32) if transposed else (32, 24))), _random(4, 32) if bias else None
    G = _random(5, 3, 11, 32)
    fast = torch.autograd.grad(lora_linear(x, W, b, A, B, eta=0.5, fan_in_fan_out=transposed), [x, A, B], G)
    assert len(counted) == 6  # forward: H and X W^T; backward: G W, P, dB and dA
    wide = [t.detach().double().requires_grad_() for t in (x, A, B)]
    y = reference.linear(wide[0], W.double(), None if b is None else b.double(), *wide[1:], eta=0.5, fan_in_fan_out=transposed)
    for name, got, right in zip("xAB", fast, torch.autograd.grad(y, wide, G.double()), strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@needs_onednn
def test_cross_entropy_in_tiles_is_the_twins(counted):
    x, w, b = _random(0, 13, 16).requires_grad_(), _random(1, 50, 16), _random(2, 50)
    labels = torch.arange(13) * 3
    found = linear_cross_entropy(x, w, b, labels, entries=13 * 20)
    (fast,) = torch.autograd.grad(found.sum(), x)
    assert len(counted) == 6  # three tiles, the logits and the way back
    wide = x.detach().double().requires_grad_()
    loss = reference.cross_entropy(wide, w.double(), b.double(), labels)
    (slow,) = torch.autograd.grad(loss.sum(), wide)
    torch.testing.assert_close(found.double(), loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5)
