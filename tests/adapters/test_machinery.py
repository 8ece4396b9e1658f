"""The layers under torch.compile, gradient checkpointing, autocast and gradient accumulation."""

import pytest
import torch
from peft import get_peft_model

from alloralib import METHODS, make_config

from .models import Convs, gpt2, gradients, llama, randomise, tokens

LM = {"input_ids": tokens(4, 9), "labels": tokens(4, 9)}


def build(base=llama, targets="all-linear", method="allora", **settings):
    settings_of_method = {"eta": 1.7} if "eta" in METHODS[method].settings else {}
    model = get_peft_model(base(), make_config(method, r=3, target_modules=targets, **settings_of_method, **settings)).eval()
    randomise(model)
    return model


def assert_equal(a: dict, b: dict, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    assert a
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def renamed(grads: dict) -> dict:
    return {name.replace("_orig_mod.", ""): g for name, g in grads.items()}


def shallow_llama():
    return llama(layers=1)


@pytest.mark.parametrize(
    ("base", "method"),
    [
        (llama, "allora"),
        (shallow_llama, "allora-od"),
        (shallow_llama, "asf-lora"),
        (shallow_llama, "allora-d"),
        (gpt2, "allora"),
    ],
)
def test_compiles_without_a_graph_break_and_agrees(base, method: str) -> None:
    model = build(base, method=method)
    inputs = {"input_ids": LM["input_ids"]}  # GPT-2's loss logs a warning, which is a graph break of its own
    eager = gradients(model, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_equal(renamed(gradients(compiled, inputs)), eager)


@pytest.mark.parametrize(("base", "targets"), [(shallow_llama, ["embed_tokens", "q_proj"]), (Convs, ["one", "two", "three"])])
def test_other_layer_types_compile(base, targets) -> None:
    model = build(base, targets)
    inputs = LM if base is shallow_llama else torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0))
    eager = gradients(model, inputs)
    torch._dynamo.reset()
    assert_equal(renamed(gradients(torch.compile(model, backend="aot_eager", fullgraph=True), inputs)), eager)


def test_inductor_agrees() -> None:
    """torch.compile's default backend, including the code it generates."""
    model = build(shallow_llama)
    eager = gradients(model, LM)
    torch._dynamo.reset()
    assert_equal(renamed(gradients(torch.compile(model, fullgraph=True), LM)), eager, rtol=1e-3)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["allora", "allora-od"])
def test_gradient_checkpointing_agrees(reentrant: bool, method: str) -> None:
    model = build(method=method)
    plain = gradients(model, LM)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    checkpointed = gradients(model, LM)
    assert_equal(checkpointed, plain)


def error(rounded: dict, exact: dict) -> float:
    """Relative distance of all gradients together from the exact ones."""
    difference = sum((rounded[name] - g).square().sum() for name, g in exact.items())
    return (difference / sum(g.square().sum() for g in exact.values())).sqrt().item()


def stock_error(dtype: torch.dtype, autocast: bool) -> float:
    """The error of PEFT's own LoRA in bfloat16 on the same model, as the tolerance."""

    def run(dtype: torch.dtype, autocast: bool) -> dict:
        model = build(lambda: llama().to(dtype), method="lora", dropout=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return gradients(model, LM)

    return error(run(dtype, autocast), run(torch.float32, False))


@pytest.mark.parametrize("method", ["allora", "allora-od", "asf-lora"])
def test_bfloat16_autocast_is_as_accurate_as_stock_lora(method: str) -> None:
    model = build(method=method)
    exact = gradients(model, LM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**LM).logits.dtype == torch.bfloat16
        rounded = gradients(model, LM)  # backward inside autocast
        loss = model(**LM).loss
    assert {g.dtype for g in rounded.values()} == {torch.float32}
    assert error(rounded, exact) <= 1.5 * stock_error(torch.float32, True)
    model.zero_grad()
    loss.backward()  # and outside, as trainers do
    assert_equal({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, rounded, rtol=0.05, atol=1e-2)


def test_bfloat16_model_with_float32_adapter() -> None:
    model = build(lambda: llama().bfloat16())
    rounded = gradients(model, LM)
    assert {g.dtype for g in rounded.values()} == {torch.float32}
    assert error(rounded, gradients(build(), LM)) <= 1.5 * stock_error(torch.bfloat16, False)


@pytest.mark.parametrize("method", ["allora", "allora-od", "asf-lora"])
def test_two_micro_batches_accumulate_to_one_batch(method: str) -> None:
    model = build(method=method)

    def total(parts: list[slice]) -> dict:
        model.zero_grad()
        for part in parts:
            logits = model(input_ids=LM["input_ids"][part]).logits
            logits.square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    assert_equal(total([slice(0, 2), slice(2, 4)]), total([slice(0, 4)]), rtol=1e-4, atol=1e-4)
