"""An export computes what was trained; a broken merge or converter is caught and leaves nothing behind."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alloralib import make_config
from alloralib.errors import ConfigError, MergeError
from alloralib.export import merged
from alloralib.export.merged import export_merged
from alloralib.export.peft import export_peft

from ..adapters.models import bert, gpt2, llama, randomise, tokens
from .adapters import saved

INPUTS = [{"input_ids": tokens(1, n)} for n in (3, 7)]
TARGETS = ["q_proj", "k_proj", "down_proj"]


def nothing_left(tmp_path) -> None:
    assert {p.name for p in tmp_path.iterdir()} <= {"adapter", "base", "converter.py"}


METHODS = ["allora", "allora-d", "allora-od", "lora-x-eta", "lora", "dora", "rslora", "pissa"]


@pytest.mark.parametrize("method", METHODS)
def test_merged(tmp_path, method: str) -> None:
    model, adapter = saved(tmp_path, method, rank_pattern={"q_proj": 2})
    proof = export_merged(adapter, tmp_path / "merged", load_base=llama, inputs=INPUTS)
    assert proof.prompts == 2
    assert proof.difference <= proof.tolerance < proof.change
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not any("lora" in name for name, _ in again.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(again(**INPUTS[1]).logits, model(**INPUTS[1]).logits, rtol=1e-4, atol=1e-4)


def test_merged_gpt2_and_a_classifier(tmp_path) -> None:
    _, adapter = saved(tmp_path / "gpt2", base=gpt2, target_modules=["c_attn", "c_fc"])
    export_merged(adapter, tmp_path / "gpt2" / "merged", load_base=gpt2, inputs=INPUTS)
    model, adapter = saved(tmp_path / "bert", base=bert, target_modules=["query", "value"], task_type="SEQ_CLS")
    export_merged(adapter, tmp_path / "bert" / "merged", load_base=bert, inputs=INPUTS)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert" / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**INPUTS[1]).logits, model(**INPUTS[1]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["allora", "lora-x-eta", "dora", "pissa"])
def test_peft_directory(tmp_path, method: str) -> None:
    model, adapter = saved(tmp_path, method)
    (adapter / "record.json").write_text("{}")
    (adapter / "checkpoint-1").mkdir()
    export_peft(adapter, tmp_path / "clean", load_base=llama, inputs=INPUTS)
    assert {p.name for p in (tmp_path / "clean").iterdir()} <= {
        "adapter_config.json", "adapter_model.safetensors", "allora_config.json", "README.md",
    }  # fmt: skip
    again = PeftModel.from_pretrained(llama(), tmp_path / "clean").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**INPUTS[1]).logits, model(**INPUTS[1]).logits, rtol=1e-4, atol=1e-5)


def test_a_pissa_adapter_is_exported_as_lora_on_the_base_itself(tmp_path) -> None:
    """PEFT subtracts the initial B A from the base when it loads PiSSA; no other program does."""
    model, adapter = saved(tmp_path, "pissa", rank_pattern={"q_proj": 2})
    export_peft(adapter, tmp_path / "clean", load_base=llama, inputs=INPUTS)
    config = LoraConfig.from_pretrained(str(tmp_path / "clean"))
    assert (config.init_lora_weights, config.r, config.rank_pattern["q_proj"]) == (True, 8, 4)
    weights = load_file(tmp_path / "clean" / "adapter_model.safetensors")
    base = llama()
    for name, module in base.named_modules():
        key = f"base_model.model.{name}.lora_"
        if key + "A.weight" in weights:  # W + BA, as any program computes it
            module.weight.data += weights[key + "B.weight"] @ weights[key + "A.weight"]
    with torch.no_grad():
        torch.testing.assert_close(base(**INPUTS[1]).logits, model(**INPUTS[1]).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_peft_wrote_is_exported_without_the_keys_at_their_default(tmp_path, method: str) -> None:
    """An adapter that another tool trained has every key of its PEFT version."""
    _, adapter = saved(tmp_path, method)
    short = json.loads((adapter / "adapter_config.json").read_text())
    whole = LoraConfig.from_pretrained(str(adapter)).to_dict()
    assert "velora_config" in whole
    whole |= {"target_modules": sorted(whole["target_modules"]), "a_key_of_tomorrow": 1}
    (adapter / "adapter_config.json").write_text(json.dumps(whole))
    export_peft(adapter, tmp_path / "clean", load_base=llama, inputs=INPUTS)
    assert json.loads((tmp_path / "clean" / "adapter_config.json").read_text()) == short | {"a_key_of_tomorrow": 1}


def drops_a_layer(model):
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and m.lora_A]
    layers[-1].lora_B["default"].weight.data.zero_()
    return model.merge_and_unload()


def scales_by_alpha_twice(model):
    for module in model.modules():
        if hasattr(module, "lora_A") and module.lora_A:
            module.scaling["default"] *= module.lora_alpha["default"] / module.r["default"] * module.lora_alpha["default"]
    return model.merge_and_unload()


def writes_the_base(model):
    return model.unload()


@pytest.mark.parametrize("broken", [drops_a_layer, scales_by_alpha_twice, writes_the_base])
def test_a_broken_merge_is_caught(tmp_path, monkeypatch, broken) -> None:
    _, adapter = saved(tmp_path)
    monkeypatch.setattr(merged, "merge", broken)
    with pytest.raises(MergeError, match="differ from the trained"):
        export_merged(adapter, tmp_path / "merged", load_base=llama, inputs=INPUTS)
    nothing_left(tmp_path)


def test_an_unchanged_base_is_caught_even_if_the_adapters_effect_is_below_rounding(tmp_path, monkeypatch) -> None:
    model, _ = saved(tmp_path)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data *= 1e-6
    model.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(merged, "merge", writes_the_base)
    with pytest.raises(MergeError, match="is lost"):
        export_merged(tmp_path / "adapter", tmp_path / "merged", load_base=llama, inputs=INPUTS)
    nothing_left(tmp_path)


def test_an_adapter_lost_in_rounding_is_refused(tmp_path) -> None:
    """In bfloat16 a small BA falls below the last place of W: the merged model is the base, or noise."""

    def base():
        return llama().bfloat16()

    model = get_peft_model(base(), make_config("allora", r=4, target_modules=TARGETS))
    randomise(model, size=0.02)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(MergeError, match="is lost"):
        export_merged(tmp_path / "adapter", tmp_path / "merged", load_base=base, inputs=INPUTS)
    nothing_left(tmp_path)


def test_an_untrained_adapter_is_refused(tmp_path) -> None:
    _, adapter = saved(tmp_path, trained=False)
    for make in (export_merged, export_peft):
        with pytest.raises(MergeError, match="never trained"):
            make(adapter, tmp_path / "out", load_base=llama, inputs=INPUTS)
    nothing_left(tmp_path)


def test_asf_lora_is_refused(tmp_path) -> None:
    _, adapter = saved(tmp_path, "asf-lora")
    for make in (export_merged, export_peft):
        with pytest.raises(MergeError, match="ASF-LoRA"):
            make(adapter, tmp_path / "out", load_base=llama, inputs=INPUTS)
    nothing_left(tmp_path)


def test_existing_files_are_not_overwritten(tmp_path) -> None:
    _, adapter = saved(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="already exists"):
        export_merged(adapter, tmp_path / "base", load_base=llama, inputs=INPUTS)
    assert (tmp_path / "base" / "thesis.tex").read_text() == "years of work"
