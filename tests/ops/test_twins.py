"""Every fast operation against its slow twin: each named gradient apart, over dtypes, shapes and members."""

import pytest
import torch

from alloralib.ops import reference
from alloralib.ops.linear import LinearLayer, lora_linears
from alloralib.ops.output import scaled_output

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
    """The case with inputs that are representable in dtype; the twin computes from them in float64."""
    return Case(case.name, case.fast, case.slow, {k: v.to(dtype).double() for k, v in case.tensors.items()}, case.rest)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", DELTA, ids=str)
@pytest.mark.parametrize("scaling", [1.0, 2.5])
def test_delta_agrees_with_its_twin(case: Case, scaling: float, dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["row", "entry", "plain"])
@pytest.mark.parametrize("unused", [None, 1])
def test_layers_on_one_input_agree_with_their_twins(dtype: torch.dtype, gradient: str, unused: int | None) -> None:
    """Three layers of different heights, ranks, eta and factors; every named gradient; one output possibly unused."""
    g = torch.Generator().manual_seed(0)
    shapes = [(7, 3, 2.0, 1.0), (33, 1, 0.7, 1.5), (1, 5, 1.3, 1.0)]

    def problem(wide: torch.dtype):
        g.manual_seed(0)
        x = torch.randn(3, 7, 19, generator=g, dtype=torch.float64).to(dtype).to(wide).requires_grad_()
        parts = []
        for n1, r, eta, scaling in shapes:
            tensors = [
                torch.randn(s, generator=g, dtype=torch.float64).to(dtype).to(wide) for s in [(n1, 19), (n1,), (r, 19), (n1, r)]
            ]
            parts.append(LinearLayer(*tensors[:2], *(t.requires_grad_() for t in tensors[2:]), eta, scaling))
        weights = [torch.randn(3, 7, n1, generator=g, dtype=torch.float64).to(dtype).to(wide) for n1, *_ in shapes]
        return x, parts, weights

    def solve(outputs, x, parts, weights):
        terms = [(y * w).sum() for k, (y, w) in enumerate(zip(outputs, weights, strict=True)) if k != unused]
        torch.stack(terms).sum().backward()
        return {"x": x.grad} | {f"{n}{k}": getattr(p, n).grad for k, p in enumerate(parts) if k != unused for n in "AB"}

    x, parts, weights = problem(dtype)
    fast = solve(lora_linears(x, parts, gradient=gradient), x, parts, weights)
    x, parts, weights = problem(torch.float64)
    slow_outputs = [
        reference.linear(x, p.weight, p.bias, p.A, p.B, gradient=gradient, eta=p.eta, scaling=p.scaling) for p in parts
    ]
    slow = solve(slow_outputs, x, parts, weights)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}[dtype]
    for name in slow:
        scale = slow[name].abs().max().item()
        torch.testing.assert_close(fast[name].double(), slow[name], rtol=tolerance, atol=tolerance * scale, msg=name)
