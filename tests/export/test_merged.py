"""A merged model is the base with W + BA, rounded once, in the base's dtype and size, with all that belongs to a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alloralib import make_config, open_run
from alloralib.cli.main import main
from alloralib.errors import ConfigError, MergeError, ModelError
from alloralib.export import merged

from ..adapters.models import randomise
from ..cli.commands import refused
from ..conftest import WORDS
from ..tiny import save, word_level

TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}"
TARGETS = ["q_proj", "o_proj", "down_proj"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def make_base(path: Path, dtype: torch.dtype = torch.bfloat16, *, tie: bool = True, **shape) -> Path:
    """A random Llama as the hub has them: 16 bits, tied embeddings, a chat template."""
    torch.manual_seed(0)
    config = LlamaConfig(**{
        "vocab_size": 23, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": tie, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1,
    } | shape)  # fmt: skip
    tokenizer = word_level(WORDS)
    tokenizer.chat_template = TEMPLATE
    save(path, LlamaForCausalLM(config).to(dtype), tokenizer)
    return path


def make_adapter(path: Path, base: Path, *, size: float = 0.1, **settings) -> Path:
    """An adapter as `save_pretrained` leaves it, without a record."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = make_config("allora", **{"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | settings)
    model = get_peft_model(model, config)
    randomise(model, size=size)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A base in bfloat16 and an adapter for it. For reading."""
    root = tmp_path_factory.mktemp("merged")
    make_adapter(root / "adapter", make_base(root / "base"))
    return root


def delta(adapter: Path, name: str) -> Tensor:
    tensors = load_file(adapter / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight"].float() for side in "AB")
    return B @ A


def is_adapted(name: str) -> bool:
    return any(f".{target}." in name for target in TARGETS)


# dtype, size, rounding


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("stored", DTYPES)
def test_dtype_and_size_are_those_of_the_base(tmp_path, stored: str, tie: bool) -> None:
    base = make_base(tmp_path / "base", DTYPES[stored], tie=tie)
    adapter = make_adapter(tmp_path / "adapter", base)
    assert main(["merge", str(adapter), "--output-dir", str(tmp_path / "out")]) == 0
    written, original = load_file(tmp_path / "out" / "model.safetensors"), load_file(base / "model.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in written.items()} == {k: (v.dtype, v.shape) for k, v in original.items()}
    assert ("lm_head.weight" in written) != tie
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == (base / "model.safetensors").stat().st_size
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["tie_word_embeddings"]) == (stored, tie)


@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_the_sum_is_formed_in_float32_and_rounded_once(root, tmp_path, computed: str) -> None:
    open_run(root / "adapter", dtype=computed).export(tmp_path / "out", "merged")
    written, original = load_file(tmp_path / "out" / "model.safetensors"), load_file(root / "base" / "model.safetensors")
    off_if_rounded_twice = 0
    for name, weight in original.items():
        if not is_adapted(name):
            assert torch.equal(written[name], weight), name
            continue
        change = delta(root / "adapter", name)
        assert torch.equal(written[name], (weight.float() + change).bfloat16()), name
        off_if_rounded_twice += int((written[name] != weight + change.bfloat16()).sum())
    assert off_if_rounded_twice > 0


@pytest.mark.parametrize(("asked", "computed"), [*((name, "float32") for name in DTYPES), ("float32", "bfloat16")])
def test_another_dtype_on_request(root, tmp_path, asked: str, computed: str) -> None:
    """Computed in a narrower dtype, it is not rounded to that first."""
    open_run(root / "adapter", dtype=computed).export(tmp_path / "out", "merged", dtype=asked)
    written, original = load_file(tmp_path / "out" / "model.safetensors"), load_file(root / "base" / "model.safetensors")
    for name, weight in original.items():
        exact = weight.float() + (delta(root / "adapter", name) if is_adapted(name) else 0)
        assert torch.equal(written[name], exact.to(DTYPES[asked])), name


def test_a_dtype_is_for_merged_models(root, tmp_path) -> None:
    with pytest.raises(ConfigError, match="dtype is for merged models"):
        open_run(root / "adapter").export(tmp_path / "out", "peft", dtype="float16")


@pytest.mark.parametrize("words", [["merge", "--output-dir"], ["export", "--format", "merged", "--output"]])
def test_the_flag(root, tmp_path, capsys, words: list[str]) -> None:
    words = [*words, str(tmp_path / "out"), str(root / "adapter"), "--dtype"]
    refused([*words, "float8"], tmp_path, capsys, "unknown dtype 'float8'")
    assert main([*words, "float16"]) == 0
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float16}


def test_single_weights_that_the_base_stores_in_float32_stay_so(tmp_path) -> None:
    """As the bias of a router, or the decay of a state space model."""
    base = make_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    open_run(make_adapter(tmp_path / "adapter", base)).export(tmp_path / "out", "merged")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.norm.weight"], tensors["model.norm.weight"])
    assert {k: v.dtype for k, v in written.items()} == {k: v.dtype for k, v in tensors.items()}


def test_tokenizer_template_and_generation_settings_travel(root, tmp_path) -> None:
    shutil.copytree(root / "base", tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "generation_config.json").read_text()) | {"repetition_penalty": 1.5}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    open_run(root / "adapter", model=str(tmp_path / "base")).export(tmp_path / "out", "merged")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["repetition_penalty"] == 1.5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("good film").input_ids == AutoTokenizer.from_pretrained(root / "base")("good film").input_ids


def test_generation_settings_that_transformers_would_not_save(root, tmp_path) -> None:
    """A temperature without sampling, as Llama 2 had."""
    shutil.copytree(root / "base", tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "generation_config.json").read_text())
    settings = settings | {"do_sample": False, "temperature": 0.6, "top_p": 0.9} | {"_from_model_config": False}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    open_run(root / "adapter", model=str(tmp_path / "base")).export(tmp_path / "out", "merged")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_classifier_on_a_16_bit_base_keeps_its_head(root, tmp_path) -> None:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(root / "base", num_labels=3, dtype=torch.float32)
    model = get_peft_model(model, make_config("allora", r=4, target_modules=TARGETS, task_type="SEQ_CLS"))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    open_run(tmp_path / "adapter").export(tmp_path / "out", "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert {v.dtype for v in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    batch = AutoTokenizer.from_pretrained(root / "base")("a very bad plot", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model.eval()(**batch).logits, rtol=0.05, atol=0.05)


# the proof


def adapter_not_applied(model: PeftModel):
    return model.unload()


def product_transposed(model: PeftModel):
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        weight, change = layer.get_base_layer().weight, layer.get_delta_weight("default")
        weight.data += change.T if change.shape[0] == change.shape[1] else change
    return model.unload()


def one_layer_missing(model: PeftModel):
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    layers[0].lora_B["default"].weight.data.zero_()
    return model.merge_and_unload()


def applied_twice(model: PeftModel):
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        layer.scaling["default"] *= 2
    return model.merge_and_unload()


@pytest.mark.parametrize("broken", [adapter_not_applied, product_transposed, one_layer_missing, applied_twice])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_a_wrong_merge_is_caught_in_16_bits(root, tmp_path, monkeypatch, broken: Callable, computed: str) -> None:
    monkeypatch.setattr(merged, "merge", broken)
    with pytest.raises(MergeError, match="differ from the trained"):
        open_run(root / "adapter", dtype=computed).export(tmp_path / "out", "merged")
    assert not list(tmp_path.iterdir())


def slightly_too_strong(model: PeftModel):
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        layer.scaling["default"] *= 1.2
    return model.merge_and_unload()


def test_rounding_explains_no_more_than_it_does(tmp_path, monkeypatch) -> None:
    """A model of small logits, of which a fixed share of 1 would be too much."""
    base = make_base(tmp_path / "base", initializer_range=0.03)
    adapter = make_adapter(tmp_path / "adapter", base, size=0.06)
    proof, _ = open_run(adapter).export(tmp_path / "out", "merged")
    assert proof.difference < proof.tolerance < proof.change / 10
    monkeypatch.setattr(merged, "merge", slightly_too_strong)
    with pytest.raises(MergeError, match="differ from the trained"):
        open_run(adapter).export(tmp_path / "wrong", "merged")


def test_a_base_that_changes_during_the_merge_is_caught(root, tmp_path) -> None:
    """The proof's own copy of the base is not the one that is merged."""
    bases = iter([0.0, 0.2])

    def load_base():
        model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.data += next(bases) * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        return model

    inputs = [{"input_ids": torch.arange(3, 9)[None]}]
    with pytest.raises(MergeError, match="differ from the trained"):
        merged.export_merged(root / "adapter", tmp_path / "out", load_base=load_base, inputs=inputs, dtype=torch.bfloat16)


def test_an_effect_below_the_last_place_is_refused_with_a_remedy_that_helps(root, tmp_path, capsys) -> None:
    adapter = make_adapter(tmp_path / "adapter", root / "base", size=0.004)
    words = ["merge", str(adapter), "--output-dir", str(tmp_path / "out")]
    message = refused(words, tmp_path, capsys, r"the adapter's effect .* is lost")
    assert "--dtype float32" in message
    assert main([*words, "--dtype", "float32"]) == 0


# an adapter and a base that do not belong together, and do not say so


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ({"num_hidden_layers": 4}, r"12 weights are in one of them only, the first is .*layers\.2\."),
        ({"num_hidden_layers": 1}, r"6 weights are in one of them only, the first is .*layers\.1\."),
        ({"hidden_size": 32}, "size mismatch for .*q_proj"),
    ],
)
@pytest.mark.parametrize("verb", ["merge", "generate"])
def test_a_base_of_another_shape(root, tmp_path, capsys, shape: dict, match: str, verb: str) -> None:
    other = make_base(tmp_path / "other", **shape)
    words = {"merge": ["--output-dir", str(tmp_path / "out")], "generate": ["--prompt", "film"]}[verb]
    message = refused([verb, str(root / "adapter"), "--model", str(other), *words], tmp_path, capsys, match)
    assert "--model DIR" in message


def test_a_vocabulary_that_was_extended_in_training(root, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    model.resize_token_embeddings(25, mean_resizing=False)
    model.save_pretrained(tmp_path / "resized")
    model = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    )
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"size mismatch for .*embed_tokens.*\[25, 64\](.|\n)*resize_token_embeddings"):
        open_run(tmp_path / "adapter", model=str(root / "base")).export(tmp_path / "out", "merged")
