"""Several adapters on one model, of one method or mixed: each works or is refused; none silently trains plain LoRA."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import alloralib
from alloralib import AlloraConfig, make_config
from alloralib.adapters.layers import AlloraLayer, Linear
from alloralib.adapters.variants import AlloraVariant
from alloralib.errors import LayerError, MergeError
from alloralib.ops import reference

from .models import assert_rule, bert, gradients, llama, lora_twin, randomise, tokens

LM = {"input_ids": tokens(), "labels": tokens()}
QV = ["q_proj", "v_proj"]


def allora(**settings) -> AlloraConfig:
    return AlloraConfig(**{"r": 3, "eta": 1.7, "target_modules": QV} | settings)


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 3, "lora_alpha": 3, "target_modules": QV} | settings)


def variants(model, name: str) -> set[bool]:
    """Whether each layer that has adapter `name` runs our variant for it."""
    layers = [m for m in model.modules() if hasattr(m, "lora_variant") and name in m.lora_A]
    assert layers
    return {isinstance(m.lora_variant.get(name), AlloraVariant) for m in layers}


def follows_rule(model, adapter: str, eta: float = 1.7) -> bool:
    """Check the adapter's gradients against LoRA's times s; returns whether any of them differs from LoRA's."""
    model.set_adapter(adapter)
    randomise(model, adapter)
    ours = gradients(model, LM)
    held = {}
    for m in model.modules():
        if isinstance(m, AlloraLayer) and adapter in m.lora_variant:
            held[m] = m.lora_variant.pop(adapter)  # the same layers without a variant: PEFT's LoRA
    lora_grads = gradients(model, LM)
    for m, variant in held.items():
        m.lora_variant[adapter] = variant
    weights, differs = dict(model.named_parameters()), False
    for name in (n for n in ours if f"lora_B.{adapter}" in n):
        A, B = weights[name.replace("_B.", "_A.")].detach(), weights[name].detach()
        s = reference.scale(reference.row_norms(A, B), eta)
        torch.testing.assert_close(ours[name], lora_grads[name] * s[:, None], rtol=1e-3, atol=1e-6)
        differs |= not torch.allclose(ours[name], lora_grads[name])
    return differs


@pytest.mark.parametrize("second", ["allora", "lora"])
def test_second_adapter_on_allora_layers(second: str) -> None:
    model = get_peft_model(llama(), allora())
    model.add_adapter("second", {"allora": allora, "lora": lora}[second](target_modules=[*QV, "k_proj"]))
    assert variants(model, "default") == {True}
    assert follows_rule(model, "default")
    if second == "allora":
        assert variants(model, "second") == {True}
        assert follows_rule(model, "second")


def test_lora_added_to_allora_layers_is_lora() -> None:
    model = get_peft_model(llama(), allora())
    model.add_adapter("plain", lora())
    assert variants(model, "plain") == {False}
    model.set_adapter("plain")
    randomise(model, "plain")
    plain = gradients(model, LM)
    twin = get_peft_model(llama(), lora(), adapter_name="plain").eval()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if ".default." not in k})
    for name, grad in gradients(twin, LM).items():
        torch.testing.assert_close(plain[name], grad, rtol=1e-4, atol=1e-6)


def test_dora_added_to_allora_layers_is_dora() -> None:
    model = get_peft_model(llama(), allora())
    model.add_adapter("dora", lora(use_dora=True))
    model.set_adapter("dora")
    assert any("lora_magnitude_vector" in name for name in gradients(model, LM))


def test_allora_on_stock_layers_is_refused_until_enabled() -> None:
    model = get_peft_model(llama(), lora())
    with pytest.raises(LayerError, match="enable_allora"):
        model.add_adapter("second", allora())
    assert "second" not in model.peft_config
    assert alloralib.enable_allora(model) == 4
    model.add_adapter("second", allora())
    assert variants(model, "default") == {False}
    assert variants(model, "second") == {True}
    assert follows_rule(model, "second")


def test_enabled_lora_is_unchanged() -> None:
    model = get_peft_model(llama(), lora()).eval()
    randomise(model)
    before = gradients(model, LM)
    alloralib.enable_allora(model)
    after = gradients(model, LM)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_switching_disabling_deleting() -> None:
    base = llama()
    plain = base(**LM).logits
    model = get_peft_model(copy.deepcopy(base), allora()).eval()
    model.add_adapter("second", allora(r=2, eta=1.0))
    randomise(model, "default")
    randomise(model, "second", size=0.5)
    outputs = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        outputs[name] = model(**LM).logits
    assert not torch.allclose(outputs["default"], outputs["second"])
    with model.disable_adapter():
        torch.testing.assert_close(model(**LM).logits, plain)
    model.delete_adapter("default")
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    assert all("default" not in m.lora_variant for m in layers)
    torch.testing.assert_close(model(**LM).logits, outputs["second"])
    assert follows_rule(model, "second", eta=1.0)


def test_two_active_adapters_add_up_and_both_follow_the_rule() -> None:
    model = get_peft_model(llama(), allora()).eval()
    model.add_adapter("second", allora(r=2, eta=1.0))
    for name in ("default", "second"):
        randomise(model, name)
    model.base_model.set_adapter(["default", "second"])
    ours = gradients(model, LM)
    twin = get_peft_model(llama(), lora()).eval()
    twin.add_adapter("second", lora(r=2, lora_alpha=2))
    twin.load_state_dict(model.state_dict())
    twin.base_model.set_adapter(["default", "second"])
    lora_grads = gradients(twin, LM)
    weights = dict(model.named_parameters())
    for name in (n for n in ours if "lora_B" in n):
        A, B = weights[name.replace("_B.", "_A.")].detach(), weights[name].detach()
        s = reference.scale(reference.row_norms(A, B), 1.7 if "default" in name else 1.0)
        torch.testing.assert_close(ours[name], lora_grads[name] * s[:, None], rtol=1e-3, atol=1e-6)


def test_rank_pattern() -> None:
    model = get_peft_model(llama(), allora(rank_pattern={"q_proj": 1}))
    ranks = {name.split(".")[-1]: m.r["default"] for name, m in model.named_modules() if isinstance(m, Linear)}
    assert ranks == {"q_proj": 1, "v_proj": 3}
    assert {m.scaling["default"] for m in model.modules() if isinstance(m, Linear)} == {1.0}


def test_modules_to_save_train_as_with_lora() -> None:
    base = bert()
    inputs = {"input_ids": tokens(), "labels": torch.tensor([0, 2])}
    config = AlloraConfig(r=3, eta=1.7, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(copy.deepcopy(base), config).eval()
    randomise(model)
    twin = lora_twin(base, model, task_type="SEQ_CLS")
    grads, lora_grads = gradients(model, inputs), gradients(twin, inputs)
    head = [name for name in grads if "classifier" in name]
    assert head
    for name in head:
        torch.testing.assert_close(grads[name], lora_grads[name])
    assert assert_rule(model, grads, lora_grads, 1.7) == 4


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_tied_embeddings() -> None:
    base = llama(tie=True)
    model = get_peft_model(copy.deepcopy(base), AlloraConfig(r=3, eta=1.7, target_modules=["embed_tokens"])).eval()
    randomise(model)
    twin = lora_twin(base, model)
    assert assert_rule(model, gradients(model, LM), gradients(twin, LM), 1.7) == 1
    shared = AlloraConfig(r=3, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    with pytest.raises(LayerError, match="ensure_weight_tying"):
        get_peft_model(copy.deepcopy(base), shared)


@pytest.mark.parametrize("method", ["allora", "allora-d", "allora-od", "lora-x-eta"])
@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unmerge(method: str, safe: bool) -> None:
    base = llama()
    model = get_peft_model(copy.deepcopy(base), make_config(method, r=3, target_modules="all-linear")).eval()
    randomise(model)
    tuned = model(**LM).logits
    model.merge_adapter(safe_merge=safe)
    torch.testing.assert_close(model(**LM).logits, tuned, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(model(**LM).logits, tuned, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload(safe_merge=safe)
    assert type(merged) is type(base)
    torch.testing.assert_close(merged(**LM).logits, tuned, rtol=1e-4, atol=1e-4)


def test_asf_lora_refuses_to_merge_and_leaves_the_model_as_it_was() -> None:
    model = get_peft_model(llama(), make_config("asf-lora", r=3, target_modules=QV)).eval()
    randomise(model)
    tuned = model(**LM).logits
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match="no weight computes it"):
            merge()
    torch.testing.assert_close(model(**LM).logits, tuned)


def test_asf_lora_computes_its_definition() -> None:
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 5)), make_config("asf-lora", r=2, target_modules=["0"]))
    randomise(model, size=1.0)
    layer = model.base_model.model[0]
    x = torch.randn(4, 6)
    f = x @ layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
    torch.testing.assert_close(model(x), layer.base_layer(x) + f / torch.sqrt(f.abs() + 1 / 2.0**2))


def test_allora_d_drops_in_training_only() -> None:
    model = get_peft_model(llama(), make_config("allora-d", r=3, dropout=0.5, target_modules=QV))
    randomise(model)
    model.eval()
    assert torch.equal(model(**LM).logits, model(**LM).logits)
    model.train()
    assert not torch.equal(model(**LM).logits, model(**LM).logits)


def test_weighted_combination_of_allora_adapters() -> None:
    model = get_peft_model(llama(), allora())
    model.add_adapter("second", allora())
    randomise(model, "default")
    randomise(model, "second")
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mean", combination_type="cat")
    assert model.peft_config["mean"].r == 6
    assert variants(model, "mean") == {True}


def test_mixed_adapter_batches() -> None:
    model = get_peft_model(llama(), allora()).eval()
    model.add_adapter("second", allora())
    randomise(model, "default")
    randomise(model, "second", size=0.6)
    ids = tokens(3)
    mixed = model(input_ids=ids, adapter_names=["default", "second", "__base__"]).logits
    for row, name in enumerate(["default", "second"]):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row], model(input_ids=ids[row : row + 1]).logits[0], rtol=1e-4, atol=1e-5)
