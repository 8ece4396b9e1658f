"""An export computes what was trained; a broken merge or converter is caught and leaves nothing behind."""

import textwrap

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alloralib import make_config
from alloralib.errors import ConfigError, MergeError
from alloralib.export import gguf, merged
from alloralib.export.gguf import export_gguf, find_converter, unpermute
from alloralib.export.merged import export_merged
from alloralib.export.peft import export_peft

from ..adapters.models import bert, gpt2, llama, randomise, tokens

INPUTS = [{"input_ids": tokens(1, n)} for n in (3, 7)]
TARGETS = ["q_proj", "k_proj", "down_proj"]


def saved(tmp_path, method: str = "allora", base=llama, *, trained: bool = True, **settings):
    settings = {"r": 4, "target_modules": TARGETS} | settings
    model = get_peft_model(base(), make_config(method, **settings)).eval()
    if trained:
        randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def nothing_left(tmp_path) -> None:
    assert {p.name for p in tmp_path.iterdir()} <= {"adapter", "base", "converter.py"}


METHODS = ["allora", "allora-d", "allora-od", "lora-x-eta", "lora", "dora", "rslora"]


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


@pytest.mark.parametrize("method", ["allora", "lora-x-eta", "dora"])
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
        torch.testing.assert_close(again(**INPUTS[1]).logits, model(**INPUTS[1]).logits)


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


CONVERTER = textwrap.dedent(
    '''
    """Imitates llama.cpp's convert_lora_to_gguf.py: its arguments and its layout, with a mistake on request."""
    import argparse, json, pathlib, re
    import gguf, torch
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser()
    parser.add_argument("--outfile"); parser.add_argument("--outtype"); parser.add_argument("--base")
    parser.add_argument("lora_path", type=pathlib.Path)
    args = parser.parse_args()
    config = json.loads((pathlib.Path(args.base) / "config.json").read_text())
    lora = json.loads((args.lora_path / "adapter_config.json").read_text())
    tensors = load_file(args.lora_path / "adapter_model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(args.outfile, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora["lora_alpha"] * (2 if MISTAKE == "alpha twice" else 1))

    def permute(w, heads):
        return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)

    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        if ".base_layer." in name:
            continue
        module = re.match(r"base_model\\.model\\.(.*)\\.lora_(?:embedding_)?[AB]", name)[1]
        side = "a" if "_A" in name else "b"
        if MISTAKE == "drops a layer" and ".layers.1.mlp" in name:
            continue
        if side == "b" and MISTAKE != "no permutation":
            if module.endswith("q_proj"):
                tensor = permute(tensor, config["num_attention_heads"])
            if module.endswith("k_proj"):
                tensor = permute(tensor, config["num_key_value_heads"])
        if MISTAKE == "zero B" and side == "b":
            tensor = torch.zeros_like(tensor)
        if module.endswith("embed_tokens") and side == "a":
            tensor = tensor.T.contiguous()
        if MISTAKE == "half precision":
            tensor = tensor.half()
        data = tensor.contiguous().numpy()
        writer.add_tensor(names.get_name(module + ".weight", try_suffixes=(".weight",)) + ".lora_" + side, data)
    if MISTAKE == "fails":
        raise SystemExit("Model LlamaForCausalLM is not supported")
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
    '''
)


def convert(tmp_path, adapter, mistake: str = "", load_base=llama):
    converter = tmp_path / "converter.py"
    converter.write_text(f"MISTAKE = {mistake!r}\n{CONVERTER}")
    load_base().save_pretrained(tmp_path / "base")
    return export_gguf(
        adapter, tmp_path / "out.gguf", load_base=load_base, inputs=INPUTS, base=tmp_path / "base", converter=converter
    )


@pytest.mark.parametrize("method", ["allora", "lora-x-eta", "rslora"])
@pytest.mark.parametrize("mistake", ["", "half precision"])
def test_gguf(tmp_path, method: str, mistake: str) -> None:
    """With ranks that differ by layer, which one alpha cannot express, and with another factor than alpha/r."""
    _, adapter = saved(tmp_path, method, rank_pattern={"q_proj": 2})
    proof = convert(tmp_path, adapter, mistake)
    assert proof.difference <= proof.tolerance
    from gguf import GGUFReader

    reader = GGUFReader(tmp_path / "out.gguf")
    assert len(reader.tensors) == 2 * 2 * len(TARGETS)
    assert reader.get_field("adapter.lora.alpha").contents() == 4


def test_gguf_embedding(tmp_path) -> None:
    _, adapter = saved(tmp_path, target_modules=["embed_tokens", "v_proj"])
    convert(tmp_path, adapter)
    assert (tmp_path / "out.gguf").is_file()


@pytest.mark.parametrize(
    ("mistake", "match"),
    [
        ("drops a layer", "10 tensors where the adapter has 12"),
        ("alpha twice", "B is off"),
        ("no permutation", "_proj, B is off"),
        ("zero B", "B is off"),
        ("fails", "not supported"),
    ],
)
def test_a_wrong_converter_is_caught(tmp_path, mistake: str, match: str) -> None:
    _, adapter = saved(tmp_path)
    with pytest.raises((MergeError, ConfigError), match=match):
        convert(tmp_path, adapter, mistake)
    nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        ("dora", {}, "cannot store use_dora"),
        ("asf-lora", {}, "ASF-LoRA"),
        ("allora", {"modules_to_save": ["lm_head"]}, "cannot store modules_to_save"),
    ],
)
def test_gguf_refuses_what_it_cannot_store(tmp_path, method: str, settings: dict, match: str) -> None:
    _, adapter = saved(tmp_path, method, **settings)
    with pytest.raises(MergeError, match=match):
        convert(tmp_path, adapter)
    nothing_left(tmp_path)


def test_the_permutation_is_reversed() -> None:
    weight = torch.arange(24 * 3.0).reshape(24, 3)
    for heads in (1, 2, 3):
        there = weight.reshape(heads, 2, 24 // heads // 2, 3).swapaxes(1, 2).reshape(24, 3)  # LlamaModel.permute
        assert torch.equal(unpermute(there, heads), weight)


def test_a_missing_converter(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(gguf.CONVERTER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"was not found\n.*clone llama\.cpp"):
        find_converter()
    with pytest.raises(ConfigError, match="no such file"):
        find_converter(str(tmp_path / "x.py"))
    (tmp_path / "x.py").write_text("")
    monkeypatch.setenv(gguf.CONVERTER_VARIABLE, str(tmp_path / "x.py"))
    assert find_converter() == tmp_path / "x.py"
