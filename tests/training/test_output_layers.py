"""Embeddings and output layers of language models: adapted ones work through training, evaluation, merging and export, even if
both are one weight. A file without them is refused."""

import json
from pathlib import Path

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alloralib import open_run
from alloralib.cli.main import main

from ..classifiers import TEXT, WORDS
from ..cli.commands import refused
from ..tiny import save, word_level
from ..trained import command, jsonl, sentences

_KEYS = {"num_key_value_heads": 1}
MODELS = {
    "llama": lambda tied: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, **_KEYS, tie_word_embeddings=tied)),
    "gemma2": lambda tied: t.Gemma2ForCausalLM(t.Gemma2Config(**TEXT, **_KEYS, head_dim=8, tie_word_embeddings=tied)),
    "qwen3": lambda tied: t.Qwen3ForCausalLM(t.Qwen3Config(**TEXT, **_KEYS, head_dim=8, tie_word_embeddings=tied)),
    "phi3": lambda tied: t.Phi3ForCausalLM(t.Phi3Config(**TEXT, **_KEYS, tie_word_embeddings=tied)),
    "gpt2": lambda tied: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=TEXT["vocab_size"], n_embd=16, n_layer=1, n_head=2, eos_token_id=1, tie_word_embeddings=tied)
    ),
}
OTHER = {"gpt2": ("wte", "c_attn"), "phi3": ("embed_tokens", "qkv_proj")}


def flags(root: Path, name: str, tied: bool, **more) -> list[str]:
    model = save(root / "model", MODELS[name](tied), word_level(WORDS))
    data = jsonl(root / "rows.jsonl", [{"text": text} for text, _ in sentences(30)])
    return command(root, task="causal-lm", model=model, data=data, text_column="text", max_steps=3, test_share=0.2, **more)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("adapted", ["input", "output", "both"])
@pytest.mark.parametrize("name", MODELS)
def test_an_adapted_embedding_or_output_layer(tmp_path, capsys, name: str, adapted: str, tied: bool) -> None:
    embedding, linear = OTHER.get(name, ("embed_tokens", "q_proj"))
    targets = [linear] + [embedding] * (adapted != "output") + ["lm_head"] * (adapted != "input")
    assert main(flags(tmp_path, name, tied, target_modules=",".join(targets))) == 0
    found = capsys.readouterr()
    assert ("shares its weight" in found.out + found.err) == tied
    run = open_run(tmp_path / "run")
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {key.split(".lora_")[0].rpartition(".")[2] for key in saved} == set(targets)
    assert all((tensor != 0).any() for key, tensor in saved.items() if "lora_B" in key or "lora_embedding_A" in key)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert run.evaluate().tuned.metrics["loss"] == pytest.approx(record["metrics"]["after"]["loss"], rel=1e-5)
    assert main(["merge", str(tmp_path / "run"), "--output-dir", str(tmp_path / "merged")]) == 0
    assert main(["export", str(tmp_path / "run"), "--format", "peft", "--output", str(tmp_path / "peft")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.tie_word_embeddings is False
    same = merged.get_input_embeddings().weight.data_ptr() == merged.get_output_embeddings().weight.data_ptr()
    assert not same
    inputs = run.processor("film good music", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, run.model(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_tied_weights_stay_tied_if_neither_is_adapted(tmp_path) -> None:
    assert main(flags(tmp_path, "llama", True)) == 0
    assert main(["merge", str(tmp_path / "run"), "--output-dir", str(tmp_path / "merged")]) == 0
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lacking", ["output layer", "layer", "embeddings", "size"])
def test_a_file_that_lacks_weights_is_refused(tmp_path, capsys, name: str, lacking: str) -> None:
    """A random output layer over a whole vocabulary is not what anybody wants to train from some rows."""
    words = flags(tmp_path, name, False)
    file, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    weights = load_file(file)
    part = {"output layer": "lm_head", "layer": ".0.", "embeddings": OTHER.get(name, ("embed_tokens", ""))[0]}.get(lacking, "?")
    save_file({key: w for key, w in weights.items() if part not in key}, file, metadata={"format": "pt"})
    if lacking == "size":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 99}))
    message = refused(words, tmp_path, capsys, r"its file has no \S+")
    assert {"output layer": "lm_head.weight", "layer": "more"}.get(lacking, "weight") in message
