"""Fused RMS norms and gates in whole models: the same numbers, only where the modules compute what their names say."""

import copy

import pytest
import torch
import transformers
from peft import get_peft_model
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from alloralib import AlloraConfig, fast_paths, fuse_elementwise
from alloralib.adapters import elementwise as module

from .models import bert, gpt2, gradients, llama, randomise, tokens

INPUTS = {"input_ids": tokens(2, 7), "labels": tokens(2, 7)}
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def build(base=llama):
    model = get_peft_model(base(), AlloraConfig(r=3, target_modules="all-linear")).eval()
    randomise(model)
    return model


def model_of(kind: str):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**SHAPE)).eval()


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """The number of calls of each fused operation."""
    made = {"rms_norm": 0, "gated": 0}
    for name in made:
        right = getattr(module, name)

        def counted(*args, name=name, right=right):
            made[name] += 1
            return right(*args)

        monkeypatch.setattr(module, name, counted)
    return made


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("Llama", (5, 2)),
        ("Mistral", (5, 2)),
        ("Qwen2", (5, 2)),
        ("Qwen3", (9, 2)),  # norms of queries and keys
        ("Phi3", (5, 0)),  # gate and up in one layer
        ("Gemma", (0, 0)),  # norms by 1 + weight, a gate of GELU
        ("Cohere", (0, 2)),  # LayerNorm
    ],
)
def test_what_is_replaced_gives_the_same_gradients(kind: str, found: tuple[int, int]) -> None:
    model = model_of(kind)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    embedded = model.get_input_embeddings()(tokens(2, 7)).detach().requires_grad_()
    model.requires_grad_(False)

    def look():
        logits = model(inputs_embeds=embedded).logits
        return logits.detach(), torch.autograd.grad(logits.square().sum(), embedded)[0]

    before, names = look(), [name for name, _ in model.named_modules()]
    assert tuple(fuse_elementwise(model).values()) == found
    torch.testing.assert_close(look(), before, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in model.named_modules()] == names
    with fast_paths(elementwise=False):
        again = look()
    assert all(torch.equal(a, b) for a, b in zip(again, before, strict=True)), "the switch brings back the model's own"
    assert fuse_elementwise(model) == {"norms": 0, "gates": 0}, "a second time there is nothing left to do"


@pytest.mark.parametrize("base", [gpt2, bert])
def test_models_without_such_modules_stay_as_they_are(base) -> None:
    model = base()
    classes = [type(m) for m in model.modules()]
    assert fuse_elementwise(model) == {"norms": 0, "gates": 0}
    assert [type(m) for m in model.modules()] == classes


def test_with_an_adapter(calls) -> None:
    model = build()
    before = gradients(model, INPUTS)
    assert calls == {"rms_norm": 0, "gated": 0}
    fuse_elementwise(model)
    made = dict.fromkeys(calls, 0)
    calls.update(made)
    after = gradients(model, INPUTS)
    assert calls == {"rms_norm": 5, "gated": 2}
    assert after.keys() == before.keys()
    for name in after:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    model.gradient_checkpointing_enable()
    model.train()
    checkpointed = gradients(model, INPUTS)
    for name in after:
        torch.testing.assert_close(checkpointed[name], after[name])


def test_a_norm_that_is_trained_gets_its_gradient(calls) -> None:
    config = AlloraConfig(r=3, target_modules="all-linear", modules_to_save=["post_attention_layernorm"])
    model = get_peft_model(llama(), config).eval()
    before = gradients(model, INPUTS)
    fuse_elementwise(model)
    calls.update(dict.fromkeys(calls, 0))
    after = gradients(model, INPUTS)
    assert calls["rms_norm"] == 3
    trained = [name for name in after if "norm" in name]
    assert len(trained) == 2
    for name in trained:
        torch.testing.assert_close(after[name], before[name])


def test_copies_are_independent_and_other_models_unchanged() -> None:
    model, other = build(), build()
    fuse_elementwise(model)
    assert not any(hasattr(m, "_fused_elementwise") for m in other.modules())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for m in twin.modules():
            if isinstance(m, LlamaRMSNorm):
                m.weight.zero_()
        assert twin(**INPUTS).logits.eq(0).all()
        torch.testing.assert_close(model(**INPUTS).logits, other(**INPUTS).logits)
    assert model.state_dict().keys() == other.state_dict().keys()


def test_the_compiler_gets_the_models_own(calls) -> None:
    model = llama().requires_grad_(False)
    inputs = {"inputs_embeds": model.get_input_embeddings()(tokens(2, 7)).detach(), "use_cache": False}
    expected = model(**inputs).logits
    fuse_elementwise(model)
    calls.update(dict.fromkeys(calls, 0))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(**inputs).logits, expected)
    assert calls == {"rms_norm": 0, "gated": 0}
    torch.compiler.reset()


def test_in_bfloat16() -> None:
    model = build(lambda: llama().bfloat16())
    before = gradients(model, INPUTS)
    assert fuse_elementwise(model) == {"norms": 5, "gates": 2}
    after = gradients(model, INPUTS)
    apart = sum(float((after[n] - before[n]).float().square().sum()) for n in after) ** 0.5
    assert apart < 0.03 * sum(float(g.float().square().sum()) for g in before.values()) ** 0.5


class AnotherRMSNorm(LlamaRMSNorm):
    """Has the usual name and weights, but computes something else, as Gemma's does."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) + hidden_states.mean()


class GatedRMSNorm(LlamaRMSNorm):
    """Takes another argument."""

    def forward(self, hidden_states, gate=None):
        return super().forward(hidden_states if gate is None else hidden_states * gate)


class TwofoldRMSNorm(LlamaRMSNorm):
    """Fails in the trial."""

    def forward(self, hidden_states):
        batch, length, _ = hidden_states.shape
        return super().forward(hidden_states), batch * length


class AnotherMLP(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


def test_modules_that_compute_something_else_are_left_alone() -> None:
    model = model_of("Llama")
    block = model.model.layers[0]
    block.input_layernorm.__class__ = AnotherRMSNorm
    block.post_attention_layernorm.eps = block.post_attention_layernorm.variance_epsilon = None
    block.mlp.__class__ = AnotherMLP
    model.model.norm.forward = lambda x: x  # replaced by other code
    model.model.layers[1].input_layernorm.__class__ = TwofoldRMSNorm
    model.model.layers[1].post_attention_layernorm.__class__ = GatedRMSNorm
    assert fuse_elementwise(model) == {"norms": 0, "gates": 1}
