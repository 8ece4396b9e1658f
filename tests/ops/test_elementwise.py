"""The fused RMS norm and gate against transformers' own modules: output, gradient, dtype, and memory kept."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from alloralib.ops.elementwise import gated, rms_norm

TOLERANCE = {torch.float32: {}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def outputs_and_gradients(function, inputs, seed: int = 9) -> list[torch.Tensor]:
    """Outputs, and gradients for a random gradient at every output."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [random(*y.shape, seed=seed + i, dtype=y.dtype) for i, y in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]


def kept(function, inputs) -> int:
    """Number of entries kept for the backward pass: each tensor once, inputs excluded."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    found: dict[int, int] = {}

    def pack(x):
        if x.data_ptr() not in {y.data_ptr() for y in inputs}:
            found[x.data_ptr()] = x.numel()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        output = function(*inputs)
    del output
    return sum(found.values())


def assert_same(ours, theirs, dtype: torch.dtype) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


def norm_like(x: torch.Tensor, weight_dtype: torch.dtype, eps: float) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(x.shape[-1], eps=eps).requires_grad_(False)
    norm.weight.copy_(random(x.shape[-1], seed=3)).abs_().add_(0.1)
    return norm.to(weight_dtype)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 5, 16), (2, 3, 4, 6)])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm_is_llamas(shape, dtype: torch.dtype, weight_dtype: torch.dtype, eps: float) -> None:
    x = random(*shape, dtype=dtype)
    x[..., :2] *= 0.01  # near eps
    norm = norm_like(x, weight_dtype, eps)
    assert_same(outputs_and_gradients(lambda x: rms_norm(x, norm.weight, eps), [x]), outputs_and_gradients(norm, [x]), dtype)


def test_rms_norm_of_zero_rows_and_strided_input() -> None:
    x = random(6, 4).t()
    x[1] = 0
    norm = norm_like(x, torch.float32, 1e-6)
    ours = outputs_and_gradients(lambda x: rms_norm(x, norm.weight, 1e-6), [x])
    assert_same(ours, outputs_and_gradients(norm, [x]), torch.float32)
    assert all(t.isfinite().all() for t in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_is_llamas(dtype: torch.dtype) -> None:
    mlp = LlamaMLP(LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=1))
    gate, up = 4 * random(2, 5, 6, dtype=dtype), random(2, 5, 6, seed=1, dtype=dtype)

    def theirs(gate, up):
        layers = SimpleNamespace(gate_proj=lambda _: gate, up_proj=lambda _: up, down_proj=lambda x: x, act_fn=mlp.act_fn)
        return LlamaMLP.forward(layers, gate)

    assert_same(outputs_and_gradients(gated, [gate, up]), outputs_and_gradients(theirs, [gate, up]), dtype)


def test_gradcheck() -> None:
    x, y = (random(2, 3, 4, seed=seed, dtype=torch.float64).requires_grad_() for seed in range(2))
    assert torch.autograd.gradcheck(gated, (x, y))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(gated(x, y).square().sum(), x, create_graph=True)[0].sum().backward()


def test_less_is_kept() -> None:
    x, gate, up = random(2, 5, 8), random(2, 5, 8, seed=1), random(2, 5, 8, seed=2)
    norm = norm_like(x, torch.float32, 1e-6)
    assert kept(gated, [gate, up]) == 0
    assert kept(lambda gate, up: torch.nn.functional.silu(gate) * up, [gate, up]) == gate.numel()
    assert kept(lambda x: rms_norm(x, norm.weight, 1e-6), [x]) == norm.weight.numel() + 2 * x[..., 0].numel()
