"""GGUF adapters, by llama.cpp's own converter: what it writes is read back, and what it cannot store is refused first."""

import functools
import textwrap

import pytest
import torch
import transformers
from safetensors.torch import load_file

from alloralib.errors import ConfigError, MergeError
from alloralib.export import gguf
from alloralib.export.gguf import _LAYOUTS, check_storable, export_gguf, find_converter, unpermute

from ..adapters.models import bert, gpt2, llama, tokens
from ..cli.commands import json_of
from ..cli.commands import refused as refused_words
from .adapters import CONVERTER, needs_tools, saved

INPUTS = [{"input_ids": tokens(1, n)} for n in (3, 7)]
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def tiny(architecture: str):
    """A model of the class, with random weights."""
    name = architecture.removesuffix("ForCausalLM")
    config = getattr(transformers, {"Gemma3": "Gemma3Text"}.get(name, name) + "Config")
    torch.manual_seed(0)
    return getattr(transformers, architecture)(config(**SHAPE, **({"head_dim": 8} if "Gemma" in name else {}))).eval()


def convert(tmp_path, adapter, load_base=llama, converter=CONVERTER):
    load_base().save_pretrained(tmp_path / "base")
    return export_gguf(
        adapter, tmp_path / "out.gguf", load_base=load_base, inputs=INPUTS, base=str(tmp_path / "base"), converter=converter
    )


def nothing_left(tmp_path) -> None:
    assert {p.name for p in tmp_path.iterdir()} <= {"adapter", "base", "converter.py"}


@needs_tools
@pytest.mark.parametrize("architecture", _LAYOUTS)
def test_every_known_architecture_is_read_back(tmp_path, architecture: str) -> None:
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"] if architecture == "Phi3ForCausalLM" else LAYERS
    _, adapter = saved(tmp_path, base=lambda: tiny(architecture), target_modules=targets)
    proof = convert(tmp_path, adapter, lambda: tiny(architecture))
    assert proof.difference <= proof.tolerance < proof.change


@needs_tools
@pytest.mark.parametrize("method", ["lora-x-eta", "rslora", "pissa"])
def test_other_factors_and_ranks_by_layer(tmp_path, method: str) -> None:
    """GGUF has one alpha for all layers, and no program but PEFT changes the base as PiSSA does."""
    _, adapter = saved(
        tmp_path, method, rank_pattern={"q_proj": 2}, target_modules=["embed_tokens", *LAYERS][method == "pissa" :]
    )
    proof = convert(tmp_path, adapter)
    assert proof.difference <= proof.tolerance
    from gguf import GGUFReader

    assert GGUFReader(tmp_path / "out.gguf").get_field("adapter.lora.alpha").contents() == (8 if method == "pissa" else 4)


@needs_tools
def test_llama_3_with_scaled_rotary_embeddings(tmp_path) -> None:
    """Converters once wrote the base's `rope_freqs` into the adapter, which llama.cpp then refused. And an adapter that PEFT
    saved has the frozen embeddings in it, which belong to no adapter either."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64

    def base():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SHAPE, rope_parameters=rope, max_position_embeddings=128)
        return transformers.LlamaForCausalLM(config).eval()

    model, adapter = saved(tmp_path, base=base, target_modules=["q_proj", "embed_tokens"])
    model.save_pretrained(adapter)
    assert any("base_layer" in name for name in load_file(adapter / "adapter_model.safetensors"))
    convert(tmp_path, adapter, base)
    from gguf import GGUFReader

    names = {tensor.name.rpartition(".")[2] for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert names == {"lora_a", "lora_b"}


@needs_tools
def test_a_run_is_exported_by_the_command(trained, tmp_path, capsys) -> None:
    words = ["--format", "gguf", "--output", str(tmp_path / "out.gguf"), "--converter", str(CONVERTER)]
    found = json_of(capsys, ["export", str(trained("causal-lm")), *words])
    assert found["difference"] <= found["tolerance"] < found["change"]
    refused_by_the_command = [
        "export",
        str(trained("classification")),
        "--format",
        "gguf",
        "--output",
        str(tmp_path / "no.gguf"),
    ]
    refused_words(refused_by_the_command, tmp_path, capsys, "a classifier's head")


BROKEN = """
    import json, pathlib, runpy, sys
    from safetensors.torch import load_file, save_file
    REAL, MISTAKE = {converter!r}, {mistake!r}
    sys.path.insert(0, REAL.rpartition("/")[0])
    adapter = pathlib.Path(sys.argv[-1])
    weights = load_file(adapter / "adapter_model.safetensors")
    if MISTAKE == "drops a layer":
        weights = {{name: w for name, w in weights.items() if ".layers.1.mlp" not in name}}
    save_file(weights, adapter / "adapter_model.safetensors")
    if MISTAKE == "alpha twice":
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {{"lora_alpha": 2 * config["lora_alpha"]}}))
    if MISTAKE == "half precision":
        sys.argv[sys.argv.index("f32")] = "f16"
    if MISTAKE == "no permutation":
        import conversion.llama
        conversion.llama.LlamaModel.permute = staticmethod(lambda weight, *heads: weight)
    if MISTAKE == "fails":
        raise SystemExit("Model LlamaForCausalLM is not supported")
    sys.argv[0] = REAL
    runpy.run_path(REAL, run_name="__main__")
"""


def broken(tmp_path, mistake: str):
    """The converter, with a mistake."""
    converter = tmp_path / "converter.py"
    converter.write_text(textwrap.dedent(BROKEN.format(converter=str(CONVERTER), mistake=mistake)))
    return converter


@needs_tools
def test_half_precision_is_within_its_rounding(tmp_path) -> None:
    _, adapter = saved(tmp_path)
    proof = convert(tmp_path, adapter, converter=broken(tmp_path, "half precision"))
    assert 0 < proof.difference <= proof.tolerance


@needs_tools
@pytest.mark.parametrize(
    ("mistake", "match"),
    [
        ("drops a layer", "10 tensors where the adapter has 12"),
        ("alpha twice", "B is off"),
        ("no permutation", "_proj, B is off"),
        ("fails", "not supported"),
    ],
)
def test_a_wrong_converter_is_caught(tmp_path, mistake: str, match: str) -> None:
    _, adapter = saved(tmp_path)
    with pytest.raises((MergeError, ConfigError), match=match):
        convert(tmp_path, adapter, converter=broken(tmp_path, mistake))
    nothing_left(tmp_path)


def refused(tmp_path, adapter, base, match: str) -> None:
    """Before anything is loaded, converted or written, whether or not there is a converter."""
    base().save_pretrained(tmp_path / "base")

    def load_base():
        pytest.fail("the base was loaded")

    with pytest.raises(MergeError, match=match) as caught:
        export_gguf(
            adapter, tmp_path / "out.gguf", load_base=load_base, inputs=INPUTS, base=str(tmp_path / "base"), converter="none.py"
        )
    assert "--format merged" in str(caught.value)
    nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        ("dora", {}, "cannot store DoRA"),
        ("allora", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ("allora", {"bias": "lora_only"}, "trained biases"),
        ("allora", {"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ("lora", {"lora_bias": True}, "trained biases"),
    ],
)
def test_what_gguf_cannot_store_is_refused(tmp_path, method: str, settings: dict, match: str) -> None:
    _, adapter = saved(tmp_path, method, **settings)
    refused(tmp_path, adapter, llama, match)


def test_asf_lora_is_refused(tmp_path) -> None:
    _, adapter = saved(tmp_path, "asf-lora")
    with pytest.raises(MergeError, match="ASF-LoRA"):
        convert(tmp_path, adapter)
    nothing_left(tmp_path)


def test_a_classifier_is_refused(tmp_path) -> None:
    _, adapter = saved(tmp_path, base=bert, target_modules=["query"], task_type="SEQ_CLS")
    refused(tmp_path, adapter, bert, "a classifier's head")


def test_an_unknown_architecture_is_refused(tmp_path) -> None:
    """llama.cpp's converter writes adapters of GPT-2 without a complaint, with A and B in each other's place."""
    _, adapter = saved(tmp_path, base=gpt2, target_modules=["c_attn"])
    refused(tmp_path, adapter, gpt2, "GPT2LMHeadModel.*swaps A and B")


def test_a_model_that_also_sees_is_refused(tmp_path) -> None:
    """Its configuration holds the language model's in `text_config`."""
    _, adapter = saved(tmp_path, target_modules=["q_proj"])
    (tmp_path / "base").mkdir()
    transformers.Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]).save_pretrained(tmp_path / "base")
    with pytest.raises(MergeError, match=r"Gemma3ForConditionalGeneration cannot be written as GGUF[\s\S]*--format merged"):
        check_storable(adapter, str(tmp_path / "base"))


@needs_tools
def test_the_converter_swaps_the_factors_of_gpt2(tmp_path, monkeypatch) -> None:
    """Should this fail one day, GPT-2 can be added to the known architectures."""
    monkeypatch.setitem(gguf._LAYOUTS, "GPT2LMHeadModel", ("gpt2", False))
    _, adapter = saved(tmp_path, base=gpt2, target_modules=["c_attn"])
    with pytest.raises(MergeError, match=r"A has shape \(4, 96\) and not \(4, 32\)"):
        convert(tmp_path, adapter, gpt2)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_one_end_of_tied_embeddings_is_refused(tmp_path, target: str) -> None:
    """llama.cpp looks the adapter up by the name of the tensor, which both ends of a tied model share."""
    tied = functools.partial(llama, tie=True)
    _, adapter = saved(tmp_path, "lora", base=tied, target_modules=[target, "q_proj"])
    refused(tmp_path, adapter, tied, f"one tensor for embeddings and output.*{target}")
    assert check_storable(saved(tmp_path, target_modules=["q_proj"])[1], str(tmp_path / "base")) == ("llama", True)


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
