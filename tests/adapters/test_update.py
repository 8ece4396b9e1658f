"""`apply_to="update"` and `"relative"`: the optimizer's step is scaled, for every optimizer (method.md, section 4)."""

import copy

import pytest
import torch
from peft import get_peft_model
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from alloralib import AlloraConfig
from alloralib.adapters.factors import adapter_matrices
from alloralib.adapters.layers import AlloraLayer
from alloralib.errors import ConfigError
from alloralib.ops import reference

from .models import Convs, gpt2, gradients, llama, mixtral, randomise, tokens

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-coupled-decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-coupled-decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "nadam-decoupled": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}
DECOUPLED = {"adamw": 0.1 * 0.01, "adamw-fused": 0.1 * 0.01, "adamw-foreach": 0.1 * 0.01, "nadam-decoupled": 0.1 * 0.01,
             "adafactor": 0.1 * 0.01}  # fmt: skip
LM = {"input_ids": tokens(), "labels": tokens()}


def build(apply_to: str = "update", base=llama, targets="all-linear", eta: float = 1.7, **settings):
    return get_peft_model(base(), AlloraConfig(r=3, eta=eta, target_modules=targets, apply_to=apply_to, **settings)).eval()


def factors(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def steps_of(model, name: str, before: dict[str, torch.Tensor], grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The steps that the optimizer takes with these gradients on a copy without the rule, apart from its own weight decay."""
    leaves = {n: nn.Parameter(before[n].clone()) for n, p in model.named_parameters() if p.requires_grad}
    plain = OPTIMIZERS[name](list(leaves.values()))
    for n, p in leaves.items():
        p.grad = grads[n].clone()
    plain.step()
    return {n: p.detach() - before[n] * (1 - DECOUPLED.get(name, 0.0)) for n, p in leaves.items()}


@pytest.mark.parametrize("eta", [0.0, 1.7])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_a_relative_step_is_a_share_of_the_frozen_weight(name: str, start: float, eta: float) -> None:
    """Compared with the twin, which forms the change of BA and W row by row."""
    model = build("relative", eta=eta)
    if start:
        randomise(model, size=start)
    ours = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    before, grads = factors(model), gradients(model, LM)
    steps, rate, decay = steps_of(model, name, before, grads), ours.param_groups[0]["lr"], DECOUPLED.get(name, 0.0)
    ours.step()
    after = factors(model)
    for n in [n for n in before if "lora_A" in n]:
        b = n.replace("_A.", "_B.")
        A, B = before[n] * (1 - decay), before[b] * (1 - decay)
        W = model.get_submodule(n.partition(".lora_A")[0]).get_base_layer().weight.detach()
        stepA, stepB = reference.relative_step(W, A, B, steps[n], steps[b], rate=rate, eta=0.0)
        t = 1 / torch.sqrt(1 + eta**2 * reference.row_norms(before[n], before[b]) / W.norm(dim=1))[:, None]
        of_A = (t * before[b]).norm() / before[b].norm() if start else 1.0
        torch.testing.assert_close(after[n], A + of_A * stepA, rtol=2e-3, atol=2e-6)
        torch.testing.assert_close(after[b], B + t * stepB, rtol=2e-3, atol=2e-6)
        if eta == 0:
            change = after[b] @ after[n] - B @ A - (after[b] - B) @ (after[n] - A)
            assert (change.norm() / W.norm()).item() == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_the_step_is_the_optimizers_step_scaled(name: str, start: float) -> None:
    """Compared with the same optimizer on a copy with the same gradients and without the rule."""
    model = build()
    if start:
        randomise(model, size=start)
    ours = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    before, grads = factors(model), gradients(model, LM)
    steps, decay, moved = steps_of(model, name, before, grads), DECOUPLED.get(name, 0.0), 0
    ours.step()
    for n, after in factors(model).items():
        kept, step = before[n] * (1 - decay), steps[n]
        A, B = before[n.replace("_B.", "_A.")], before[n.replace("_A.", "_B.")]
        s = reference.scale(reference.row_norms(A, B), 1.7)
        factor = s[:, None] if "lora_B" in n else (s[:, None] * B).norm() / B.norm() if start else torch.tensor(1.7)
        torch.testing.assert_close(after, kept + factor * step, rtol=1e-4, atol=2e-6)
        moved += not torch.equal(after, before[n])
    assert moved >= len(steps) / 2


def test_gradients_are_loras_own() -> None:
    update, scaled = build("update"), build("gradient")
    randomise(update)
    randomise(scaled)
    layers = [m for m in scaled.modules() if isinstance(m, AlloraLayer)]
    ours = gradients(update, LM)
    ruled = gradients(scaled, LM)
    for m in layers:
        m.lora_variant.pop("default")
    for name, grad in gradients(scaled, LM).items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-6)
        assert "lora_" not in name or not torch.allclose(ruled[name], grad, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("eta", [1.0, 2.0, 8.0])
def test_under_adam_eta_acts_on_the_update_and_cancels_in_the_gradient(eta: float) -> None:
    """Section 4 of method.md: mean row norm after five steps, relative to eta = 1."""

    def norm_after_five(apply_to: str, eta: float) -> float:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(24, 16, bias=False))
        net[0].weight.data.zero_()
        model = get_peft_model(net, AlloraConfig(r=4, eta=eta, target_modules=["0"], apply_to=apply_to))
        x, y = torch.randn(64, 24), torch.randn(64, 16)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        for _ in range(5):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        layer = next(m for m in model.modules() if isinstance(m, AlloraLayer))
        return layer.adapter_row_norms("default").mean().item()

    decoupled = norm_after_five("update", eta) / norm_after_five("update", 1.0)
    coupled = norm_after_five("gradient", eta) / norm_after_five("gradient", 1.0)
    assert decoupled == pytest.approx(eta, rel=0.15)
    assert coupled == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("kind", ["convs", "experts", "embedding"])
def test_other_layer_types(kind: str) -> None:
    if kind == "convs":
        model = build(base=Convs, targets=["one", "two", "three"])
        inputs = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0))
    elif kind == "experts":
        model, inputs = build(base=mixtral, targets=[], target_parameters=["mlp.experts.down_proj"]), LM
    else:
        model, inputs = build(targets=["embed_tokens"]), LM
    randomise(model)
    before = factors(model)
    grads = gradients(model, inputs)
    norms = {n: m.adapter_row_norms("default") for n, m in model.named_modules() if isinstance(m, AlloraLayer)}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    for n, after in factors(model).items():
        if "_B" not in n:
            continue
        s = reference.scale(next(v for k, v in norms.items() if n.startswith(k + ".")), 1.7)
        step = -0.5 * grads[n]
        if kind == "experts":
            expected = (step.view(step.shape[0], -1, 4) * s.T[:, None, :]).reshape(step.shape)
        else:
            expected = step * s.view(-1, *(1,) * (step.dim() - 1))
        torch.testing.assert_close(after, before[n] + expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["convs", "grouped", "experts", "embedding", "conv1d", "4 bits"])
def test_other_layer_types_take_relative_steps(kind: str) -> None:
    """With eta = 0, one step changes the weight that PEFT would merge by the learning rate's share of the frozen one."""
    inputs = LM
    if kind == "convs":
        model = build("relative", base=Convs, targets=["one", "two", "three"], eta=0.0)
        inputs = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0))
    elif kind == "grouped":
        model = get_peft_model(Grouped(), AlloraConfig(r=6, eta=0.0, target_modules=["conv"], apply_to="relative"))
        inputs = torch.randn(2, 6, 9)
    elif kind == "experts":
        model = build("relative", base=mixtral, targets=[], target_parameters=["mlp.experts.down_proj"], eta=0.0)
    elif kind == "conv1d":
        model = build("relative", base=gpt2, targets=["c_attn", "c_fc"], eta=0.0)
    elif kind == "4 bits":
        model = build("relative", base=FourBits, targets=["linear"], eta=0.0)
        inputs = torch.randn(4, 64)
    else:
        model = build("relative", targets=["embed_tokens"], eta=0.0)
    randomise(model)
    layers = [m for m in model.modules() if isinstance(m, AlloraLayer)]
    before = [product(m) for m in layers]
    gradients(model, inputs)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4).step()
    for m, old in zip(layers, before, strict=True):
        W = m.get_param() if kind == "experts" else dequantize_module_weight(m.get_base_layer()).flatten()[None]
        W = W.float().norm() if W.dim() == 2 else W.norm(dim=(-2, -1))
        share = (product(m) - old).norm(dim=(-2, -1)) / W
        torch.testing.assert_close(share, torch.full_like(share, 1e-4), rtol=0.05, atol=0)


def product(layer: AlloraLayer) -> torch.Tensor:
    """BA of an adapter, in a convolution with groups each group's own."""
    A, B = adapter_matrices(layer, "default")
    groups = getattr(layer.get_base_layer(), "groups", 1)
    parts = zip(A.chunk(groups, dim=-2), B.chunk(groups, dim=-2), strict=True)
    return torch.cat([b @ a for a, b in parts], dim=-2)


class Grouped(nn.Module):
    """A convolution with groups, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).square().mean()


class FourBits(nn.Module):
    """A linear layer of 4 bits, and a number."""

    def __init__(self) -> None:
        super().__init__()
        import bitsandbytes

        torch.manual_seed(0)
        self.linear = bitsandbytes.nn.Linear4bit(64, 32, bias=False, quant_type="nf4").to("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square().mean()


def test_only_adapters_with_apply_to_update_are_scaled() -> None:
    """A head that is trained in full, and an adapter with apply_to="gradient", make the optimizer's own step."""
    model = build()
    model.add_adapter("other", AlloraConfig(r=2, eta=1.7, target_modules=["q_proj"]))
    model.set_adapter("other")
    randomise(model, "other")
    model.lm_head.weight.requires_grad_(True)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    grads = gradients(model, LM)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    for n, p in model.named_parameters():
        if n in before:
            torch.testing.assert_close(p.detach(), before[n] - 0.5 * grads[n], rtol=1e-5, atol=1e-7)


def test_a_deep_copy_follows_the_rule() -> None:
    model = copy.deepcopy(build())
    before = factors(model)
    grads = gradients(model, LM)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    name = next(n for n in before if "lora_B" in n)
    torch.testing.assert_close(factors(model)[name], -0.1 * 1.7 * grads[name], rtol=1e-4, atol=1e-7)


class OwnOptimizer(torch.optim.Optimizer):
    def __init__(self, params, **defaults) -> None:
        super().__init__(params, defaults)

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])


def test_a_custom_optimizer() -> None:
    model = build()
    params = [p for p in model.parameters() if p.requires_grad]
    grads = gradients(model, LM)
    OwnOptimizer(params, lr=0.1, weight_decay=0.0).step()
    name = next(n for n in grads if "lora_B" in n)
    torch.testing.assert_close(factors(model)[name], -0.1 * 1.7 * grads[name], rtol=1e-4, atol=1e-7)
    with pytest.raises(ConfigError, match="cannot tell how OwnOptimizer applies weight_decay"):
        OwnOptimizer(params, lr=0.1, weight_decay=0.1).step()


def test_transformers_adafactor() -> None:
    from transformers.optimization import Adafactor

    model = build()
    params = [p for p in model.parameters() if p.requires_grad]
    gradients(model, LM)
    Adafactor(params, lr=0.01, relative_step=False, scale_parameter=False, weight_decay=0.1).step()
    with pytest.raises(ConfigError, match="Adafactor"):
        Adafactor(params, lr=0.01, relative_step=False, scale_parameter=True, weight_decay=0.1).step()
    model = build("relative")
    with pytest.raises(ConfigError, match="needs a learning rate, and Adafactor chooses its own"):
        Adafactor([p for p in model.parameters() if p.requires_grad], lr=None, relative_step=True).step()


def test_without_the_hook_the_step_is_not_scaled(monkeypatch) -> None:
    """Shows that the tests can fail: without the hook, B moves by the optimizer's own step."""
    from alloralib.adapters import update

    monkeypatch.setattr(update, "track", lambda layer: None)
    model = build()
    grads = gradients(model, LM)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    name = next(n for n in grads if "lora_B" in n)
    assert not torch.allclose(factors(model)[name], -0.1 * 1.7 * grads[name], rtol=1e-3)
