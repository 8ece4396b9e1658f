"""Layers on one input, computed together: the same numbers as one by one, whatever happens between their calls."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from alloralib import AlloraConfig, make_config
from alloralib.adapters import layers, siblings
from alloralib.adapters.siblings import fast_paths

from .models import bert, gradients, llama, randomise, tokens

LM = {"input_ids": tokens(2, 7), "labels": tokens(2, 7)}


def build(base=llama, method="allora", targets="all-linear", **settings):
    model = get_peft_model(base(), make_config(method, r=3, target_modules=targets, **settings)).eval()
    randomise(model)
    return model


@pytest.fixture
def nodes(monkeypatch) -> list[int]:
    """How many layers each fused node computed, in order."""
    seen: list[int] = []
    right = layers.lora_linears

    def counted(x, parts, **kwargs):
        seen.append(len(parts))
        return right(x, parts, **kwargs)

    monkeypatch.setattr(layers, "lora_linears", counted)
    return seen


def assert_close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", ["allora", "allora-od", "allora-d"])
@pytest.mark.parametrize(("base", "inputs"), [(llama, LM), (bert, {"input_ids": tokens(2, 7), "labels": torch.tensor([0, 2])})])
def test_every_path_gives_the_same_gradients(base, inputs, method: str) -> None:
    model = build(base, method, "all-linear")
    with fast_paths(fused=False):
        plain = gradients(model, inputs)
    with fast_paths(grouped=False):
        fused = gradients(model, inputs)
    together = gradients(model, inputs)
    assert_close(fused, plain)
    assert_close(together, plain)
    with torch.no_grad(), fast_paths(fused=False):
        expected = model(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected)


def test_siblings_are_found(nodes) -> None:
    model = build()
    gradients(model, LM)
    assert nodes == [3, 1, 2, 1] * 2  # q k v, o, gate up, down
    nodes.clear()
    with fast_paths(grouped=False):
        gradients(model, LM)
    assert nodes == [1] * 14
    nodes.clear()
    with fast_paths(fused=False):
        gradients(model, LM)
    assert nodes == []


class Two(nn.Module):
    """Two layers that are called as the test says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = nn.Linear(6, 5), nn.Linear(6, 4)
        self.between = lambda x: x
        self.order = ("gate_proj", "up_proj")

    def forward(self, x):
        made = {}
        for name in self.order:
            made[name] = getattr(self, name)(x)
            x = self.between(x)
        return torch.cat([made[name] for name in sorted(made)], dim=-1)


def two():
    model = get_peft_model(Two(), AlloraConfig(r=2, target_modules=["gate_proj", "up_proj"]))
    randomise(model)
    return model, model.base_model.model


def alone(model, x):
    with fast_paths(fused=False):
        return model(x.clone())


def batch(seed: int = 0):
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))


def test_another_input_is_not_mistaken(nodes) -> None:
    model, inner = two()
    model(batch())
    assert nodes == [2]
    inner.between = lambda x: x + 1
    torch.testing.assert_close(model(batch(2)), alone(model, batch(2)))
    torch.testing.assert_close(model(batch(3)), alone(model, batch(3)))


def test_an_input_that_was_changed_in_place_is_not_mistaken() -> None:
    model, inner = two()
    inner.between = lambda x: x.add_(1)
    torch.testing.assert_close(model(batch(2)), alone(model, batch(2)))


def test_inference_mode() -> None:
    """Its tensors do not count their changes: nothing is handed out there, inside of it or after."""
    model, inner = two()
    with torch.inference_mode():
        x = batch(2)
        torch.testing.assert_close(model(x), alone(model, batch(2)))
        inner.between = lambda x: x.add_(1)
        torch.testing.assert_close(model(batch(2)), alone(model, batch(2)))
    inner.between = lambda x: x
    with torch.no_grad():
        torch.testing.assert_close(model(x), alone(model, batch(2)))
    torch.testing.assert_close(model(batch(3)), alone(model, batch(3)))


def test_the_tests_above_can_fail(monkeypatch) -> None:
    def forgetful(self, layer, x):
        return self.waiting.pop(id(layer), None)

    monkeypatch.setattr(siblings.Group, "take", forgetful)
    model, inner = two()
    inner.between = lambda x: x.add_(1)
    assert not torch.allclose(model(batch(2)), alone(model, batch(2)))


@pytest.mark.parametrize(
    "order", [("up_proj", "gate_proj"), ("up_proj",), ("gate_proj",), ("gate_proj", "gate_proj", "up_proj")]
)
def test_another_order_of_calls(order) -> None:
    model, inner = two()
    inner.order = order
    for seed in (2, 3, 4):
        torch.testing.assert_close(model(batch(seed)), alone(model, batch(seed)))
    inner.order = ("gate_proj", "up_proj")
    torch.testing.assert_close(model(batch(5)), alone(model, batch(5)))


def test_an_output_that_nothing_is_made_of_has_no_gradient_and_disturbs_none() -> None:
    model, _ = two()

    def grads(x):
        model.zero_grad(set_to_none=True)
        model(x)[:, :5].square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}

    together = grads(batch(2))
    with fast_paths(fused=False):
        single = grads(batch(2))
    for name in single:
        if ".gate_proj." in name:
            torch.testing.assert_close(together[name], single[name])
        else:
            assert not single[name].any()


def test_adapters_come_go_and_differ(nodes) -> None:
    model, _ = two()
    model.add_adapter("lora", make_config("lora", r=2, dropout=0.0, target_modules=["up_proj"]))
    randomise(model, "lora")
    for active in (["default"], ["lora"], ["default", "lora"]):
        model.base_model.set_adapter(active)
        torch.testing.assert_close(model(batch(2)), alone(model, batch(2)))
    with model.disable_adapter():
        torch.testing.assert_close(model(batch(2)), alone(model, batch(2)))
    model.base_model.set_adapter(["default"])
    with torch.no_grad():
        torch.testing.assert_close(model(batch(3)), alone(model, batch(3)))
    model.merge_adapter()
    torch.testing.assert_close(model(batch(3)), alone(model, batch(3)))
    model.unmerge_adapter()
    model.delete_adapter("lora")
    nodes.clear()
    torch.testing.assert_close(model(batch(3)), alone(model, batch(3)))
    assert nodes == [2]


def test_a_copy_has_siblings_of_its_own() -> None:
    model = build()
    gradients(model, LM)
    twin = copy.deepcopy(model)
    randomise(twin, seed=5)
    gradients(twin, LM)
    with fast_paths(fused=False):
        expected, expected_twin = gradients(model, LM), gradients(twin, LM)
    assert_close(gradients(model, LM), expected)
    assert_close(gradients(twin, LM), expected_twin)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, nodes) -> None:
    model = build()
    with fast_paths(fused=False):
        plain = gradients(model, LM)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_close(gradients(model, LM), plain)
    assert 3 in nodes


def test_queries_of_another_input_are_left_out(nodes) -> None:
    """T5's attention to the encoder: keys and values are siblings, queries are not."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    shape = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    base = T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0, pad_token_id=0))
    model = get_peft_model(base, AlloraConfig(r=2, target_modules=["q", "k", "v"])).eval()
    randomise(model)
    inputs = {"input_ids": tokens(2, 7), "labels": tokens(2, 5)}
    together = gradients(model, inputs)
    assert nodes == [3, 3, 1, 2]  # the encoder's own, the decoder's own, the decoder's queries, the encoder's keys and values
    with fast_paths(fused=False):
        assert_close(together, gradients(model, inputs))


def test_nothing_is_kept_once_it_was_handed_out() -> None:
    model = build()
    gradients(model, LM)
    for module in model.modules():
        if isinstance(module, layers.Linear) and module.group is not None:
            assert module.group.waiting == {}
            assert module.group._input is None
