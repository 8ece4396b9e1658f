"""The optimizer's parameter groups of every method, and factors of any layer."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alloralib import METHODS, AlloraConfig, make_config, optimizer_groups
from alloralib.adapters.factors import adapter_parameters, adapter_row_norms
from alloralib.adapters.monitor import layer_states
from alloralib.errors import ConfigError

from .models import Convs, gradients, llama, mixtral, randomise, tokens

LM = {"input_ids": tokens(), "labels": tokens()}


@pytest.mark.parametrize("method", METHODS)
def test_groups_hold_every_trained_parameter_once(method: str) -> None:
    model = get_peft_model(llama(), make_config(method, r=2, target_modules=["q_proj", "embed_tokens"]))
    groups = optimizer_groups(model, method, learning_rate=0.1, weight_decay=0.01)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [group["lr"] for group in groups] == ([0.1, 1.6] if method == "lora-plus" else [0.1])
    assert {group["weight_decay"] for group in groups} == {0.01}


def test_lora_plus_moves_B_faster() -> None:
    """One step of SGD: B moves by 3 times the learning rate, A (at a B that is not zero) by the learning rate."""
    model = get_peft_model(llama(), make_config("lora-plus", r=2, dropout=0.0, target_modules=["q_proj"])).eval()
    randomise(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = gradients(model, LM)
    torch.optim.SGD(optimizer_groups(model, "lora-plus", learning_rate=0.1, ratio=3.0)).step()
    for name, p in model.named_parameters():
        if name in grads:
            rate = 0.3 if "lora_B" in name else 0.1
            torch.testing.assert_close(p.detach(), before[name] - rate * grads[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["allora", "lora-plus"])
def test_what_is_trained_whole_can_have_its_own_rate(method: str) -> None:
    """Its biases and norms get no weight decay, as in transformers' Trainer."""
    model = get_peft_model(Convs(), make_config(method, r=2, target_modules=["one"], modules_to_save=["two"]))
    groups = optimizer_groups(model, method, learning_rate=0.1, weight_decay=0.01, head_learning_rate=0.5)
    held = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad:
            rate = 1.6 if method == "lora-plus" and "lora_B" in name else 0.1
            expected = (rate, 0.01) if "lora_" in name else (0.5, 0.0 if name.endswith("bias") else 0.01)
            assert held.pop(id(p)) == pytest.approx(expected), name
    assert not held
    assert groups[0]["lr"] == 0.1


def test_a_rate_of_the_head_without_a_head_is_refused() -> None:
    model = get_peft_model(llama(), make_config("allora", target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="no module is trained whole"):
        optimizer_groups(model, "allora", learning_rate=0.1, head_learning_rate=0.5)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lora-plus'"):
        optimizer_groups(llama(), "lora-pluss", learning_rate=0.1)


@pytest.mark.parametrize(
    ("base", "targets"),
    [
        (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
        (Convs, {"target_modules": ["one", "two", "three"]}),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)), {"target_modules": ["0"]}),
        (mixtral, {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    ],
    ids=["llama", "convolutions", "groups", "experts"],
)
@pytest.mark.filterwarnings("ignore:.*groups > 1")
def test_row_norms_of_stock_layers_are_those_of_ours(base, targets: dict) -> None:
    ours = get_peft_model(base(), AlloraConfig(r=2, **targets))
    stock = get_peft_model(base(), LoraConfig(r=2, lora_alpha=2, **targets))
    randomise(ours)
    stock.load_state_dict(ours.state_dict())
    compared = 0
    for (name, layer), other in zip(ours.named_modules(), stock.modules(), strict=True):
        if adapter_parameters(layer, "default") is not None:
            torch.testing.assert_close(adapter_row_norms(other, "default"), adapter_row_norms(layer, "default"), msg=name)
            compared += 1
    assert compared == len(layer_states(stock)) == len(layer_states(ours)) > 0
