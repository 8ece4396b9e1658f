"""Every fast operation against its slow twin: each gradient separately, over dtypes, shapes and gradient adaptors."""

import pytest
import torch

from alloralib.ops import reference
from alloralib.ops.scale import scaled_output

from .cases import ALL, BRANCHES, DELTA, LINEAR, Case, run, upstream

# relative to the largest entry of the twin's result in float64
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def assert_same(fast, slow, tolerance: float) -> None:
    values, grads = fast
    twin_values, twin_grads = slow
    assert grads.keys() == twin_grads.keys()
    for name, a, b in [("output", values, twin_values), *((k, grads[k], twin_grads[k]) for k in grads)]:
        assert a.shape == b.shape, name
        bound = tolerance * max(b.abs().max().item(), 1e-30)
        difference = (a.double() - b.double()).abs().max().item()
        assert difference <= bound, f"{name}: off by {difference:.3g}, allowed {bound:.3g}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("gradient", ["plain", "row", "entry"])
@pytest.mark.parametrize("case", BRANCHES, ids=str)
def test_branch_agrees_with_its_twin(case: Case, gradient: str, dtype: torch.dtype) -> None:
    settings = {"gradient": gradient, "eta": 1.7, "scaling": 1.0}
    case = rounded(case, dtype)
    tolerance = TOLERANCE[dtype] * (2 if gradient == "entry" else 1)  # its scale reads an output that was rounded itself
    assert_same(run(case.fast, case, dtype, **settings), run(case.slow, case, torch.float64, **settings), tolerance)


@pytest.mark.parametrize("case", BRANCHES, ids=str)
@pytest.mark.parametrize("gradient", ["plain", "row", "entry"])
def test_branch_with_a_constant_factor(case: Case, gradient: str) -> None:
    settings = {"gradient": gradient, "eta": 0.6, "scaling": 2.5}
    assert_same(run(case.fast, case, torch.float64, **settings), run(case.slow, case, torch.float64, **settings), 1e-12)


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The case with inputs rounded to dtype; the twin computes with them in float64."""
    return Case(case.name, case.fast, case.slow, {k: v.to(dtype).double() for k, v in case.tensors.items()}, case.rest)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", DELTA, ids=str)
@pytest.mark.parametrize("scaling", [1.0, 2.5])
def test_delta_weight_agrees_with_its_twin(case: Case, scaling: float, dtype: torch.dtype) -> None:
    settings, case = {"eta": 1.7, "scaling": scaling}, rounded(case, dtype)
    assert_same(run(case.fast, case, dtype, **settings), run(case.slow, case, torch.float64, **settings), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", [(), (7,), (3, 1, 5)])
def test_scaled_output_agrees_with_its_twin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    f = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = rounded(Case("asf", scaled_output, reference.scaled_output, {"f": f}, {}), dtype)
    assert_same(run(case.fast, case, dtype, eta=1.7), run(case.slow, case, torch.float64, eta=1.7), TOLERANCE[dtype])


def test_scaled_output_at_zero_has_slope_eta() -> None:
    f = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    scaled_output(f, 1.7).sum().backward()
    assert f.grad is not None
    torch.testing.assert_close(f.grad, torch.full_like(f, 1.7))


@pytest.mark.parametrize(("case", "wanted"), [(c, w) for c in ALL for w in c.tensors], ids=str)
def test_one_input_alone_gets_the_gradient_it_gets_among_others(case: Case, wanted: str) -> None:
    settings = {"eta": 2.0} | ({} if case in DELTA else {"gradient": "row"})
    _, everything = run(case.fast, case, torch.float64, **settings)
    leaves = {k: v.clone().requires_grad_(k == wanted) for k, v in case.tensors.items()}
    y = case.fast(**leaves, **case.rest, **settings)
    y.backward(upstream(y))
    torch.testing.assert_close(leaves[wanted].grad, everything[wanted])
    assert all(v.grad is None for k, v in leaves.items() if k != wanted)


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_non_contiguous_input_and_gradient(case: Case) -> None:
    x = case.tensors["x"]
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert not strided.is_contiguous() or x.numel() == 1
    other = {k: v for k, v in case.tensors.items() if k != "x"}
    results = []
    for source in (x, strided):
        leaf = source.detach().requires_grad_()
        y = case.fast(leaf, **other, **case.rest)
        y.sum().backward()  # an expanded gradient, stride 0
        results.append((y, leaf.grad))
    torch.testing.assert_close(results[0], results[1])


def test_second_derivatives_raise() -> None:
    case = LINEAR[0]
    leaves = {k: v.clone().requires_grad_() for k, v in case.tensors.items()}
    y = case.fast(**leaves, **case.rest)
    (g,) = torch.autograd.grad(y.square().sum(), leaves["A"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
