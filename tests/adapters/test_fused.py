"""A frozen layer and its adapter in one autograd node: the same numbers as PEFT's forward pass with our branch beside it."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from alloralib import AlloraConfig, fast_paths, make_config
from alloralib.adapters import layers

from .models import bert, gradients, llama, randomise, tokens

LM = {"input_ids": tokens(2, 7), "labels": tokens(2, 7)}


def build(base=llama, method="allora"):
    model = get_peft_model(base(), make_config(method, r=3, target_modules="all-linear")).eval()
    randomise(model)
    return model


@pytest.fixture
def nodes(monkeypatch) -> list[torch.Size]:
    """The shape of B for every fused node, in order."""
    seen: list[torch.Size] = []
    right = layers.lora_linear

    def counted(x, weight, bias, A, B, **settings):
        seen.append(B.shape)
        return right(x, weight, bias, A, B, **settings)

    monkeypatch.setattr(layers, "lora_linear", counted)
    return seen


def assert_close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", ["allora", "allora-od", "allora-d"])
@pytest.mark.parametrize(("base", "inputs"), [(llama, LM), (bert, {"input_ids": tokens(2, 7), "labels": torch.tensor([0, 2])})])
def test_both_paths_give_the_same_gradients(base, inputs, method: str, nodes) -> None:
    model = build(base, method)
    with fast_paths(fused=False):
        plain = gradients(model, inputs)
        assert not nodes
        with torch.no_grad():
            expected = model(**inputs).logits
    assert_close(gradients(model, inputs), plain)
    assert len(nodes) == sum(isinstance(m, layers.Linear) for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected)


def two():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model = get_peft_model(base, AlloraConfig(r=2, target_modules=["0", "2"]))
    randomise(model)
    return model


def batch(seed: int = 0):
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))


def assert_paths_agree(model) -> None:
    with fast_paths(fused=False):
        expected = model(batch(2))
    torch.testing.assert_close(model(batch(2)), expected)


def test_inference_mode() -> None:
    model = two()
    with torch.inference_mode():
        assert_paths_agree(model)
    assert_paths_agree(model)


def test_adapters_come_go_and_differ(nodes) -> None:
    model = two()
    model.add_adapter("lora", make_config("lora", r=2, dropout=0.0, target_modules=["2"]))
    randomise(model, "lora")
    for active in (["default"], ["lora"], ["default", "lora"]):
        model.base_model.set_adapter(active)
        assert_paths_agree(model)
    with model.disable_adapter():
        assert_paths_agree(model)
    model.base_model.set_adapter(["default"])
    model.merge_adapter()
    nodes.clear()
    assert_paths_agree(model)
    assert nodes == []
    model.unmerge_adapter()
    model.delete_adapter("lora")
    assert_paths_agree(model)
    assert nodes == [(5, 2), (4, 2)]


def test_a_copy_has_factors_of_its_own() -> None:
    model = build()
    before = gradients(model, LM)
    twin = copy.deepcopy(model)
    randomise(twin, seed=5)
    found = gradients(twin, LM)
    with fast_paths(fused=False):
        assert_close(found, gradients(twin, LM))
    assert_close(gradients(model, LM), before)
