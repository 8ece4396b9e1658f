"""What is longer, larger or other than the model can take: cut, replaced or refused before the first step, in every verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from alloralib import open_run
from alloralib.cli.main import main
from alloralib.records import RunRecord
from alloralib.training.config import RunConfig
from alloralib.training.run import dry_run, train

from ..adapters.models import llama
from ..cli.commands import json_of, refused
from ..conftest import WORDS
from ..tiny import SHAPE, save, word_level, word_pieces
from ..trained import jsonl

LONG = " ".join(WORDS * 3)  # 60 words


def texts(path: Path, extra: str = "") -> str:
    """24 rows of two classes, every third one with 60 words."""
    rows = []
    for i in range(24):
        label = ["neg", "pos"][i % 2]
        words = [WORDS[i % 10], WORDS[(i * 3) % 20], "good" if label == "pos" else "bad", WORDS[i // 2]]
        rows.append({"text": " ".join(words) + (f" {LONG}" if i % 3 == 0 else "") + extra, "label": label})
    return jsonl(path / "rows.jsonl", rows)


def words(path: Path, model: str, task: str, **flags: Any) -> list[str]:
    flags = {
        "task": task, "model": model, "output_dir": path / "run", "r": 2, "max_steps": 2, "batch_size": 4,
        "test_share": 0.3,
    } | flags  # fmt: skip
    return ["train", *(w for k, v in flags.items() for w in ("--" + k.replace("_", "-"), str(v)))]


def record(path: Path) -> RunRecord:
    return RunRecord.read(path / "run" / "record.json")


def roberta(path: Path, padding: int) -> str:
    """RoBERTa, which counts positions from its padding id on. That of the tokenizer is 0 or 5, that of the model 1."""
    tokenizer = word_level(WORDS)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1, type_vocab_size=1, **SHAPE)
    return save(path / "roberta", RobertaForMaskedLM(config), tokenizer)


def gpt2(path: Path) -> str:
    tokenizer = word_level(WORDS)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.2, eos_token_id=1,
        bos_token_id=1,
    )  # fmt: skip
    return save(path / "gpt2", GPT2LMHeadModel(config), tokenizer)


@pytest.mark.parametrize(("padding", "limit"), [(0, 32), (5, 28)])
def test_a_classifier_takes_as_many_tokens_as_it_has_positions(padding: int, limit: int, tmp_path, capsys) -> None:
    model = roberta(tmp_path, padding)
    base = words(tmp_path, model, "classification", data=texts(tmp_path), target_modules="query,value")
    found = json_of(capsys, [*base, "--dry-run"])
    assert f"max_length is {limit}, not 512: the model can take no more tokens" in found["warnings"]
    assert found["data"]["longest"] == limit
    assert main(base) == 0
    assert record(tmp_path).config["max_length"] == limit
    assert f"cut at {limit} tokens" in " ".join(record(tmp_path).preflight["warnings"])
    run = open_run(tmp_path / "run")
    assert len(run.predict([LONG, LONG * 9, "good"])) == 3
    scores = json_of(capsys, ["evaluate", str(tmp_path / "run"), "--data", texts(tmp_path, extra=f" {LONG}")])
    assert scores["rows"] == 24
    assert main(["export", str(tmp_path / "run"), "--format", "peft", "--output", str(tmp_path / "peft")]) == 0


def test_more_than_the_model_can_take_is_refused(tmp_path, capsys) -> None:
    model, data = gpt2(tmp_path), texts(tmp_path)
    base = words(tmp_path, model, "causal-lm", data=data, text_column="text")
    for more in ([], ["--dry-run"]):
        message = refused([*base, "--max-length", "33", *more], tmp_path, capsys, "max_length=33 is more than the 32 tokens")
        assert "give at most 32" in message
    assert main([*base, "--max-length", "32"]) == 0


def test_a_language_model_in_every_verb(tmp_path, capsys) -> None:
    rows = [
        {"prompt": f"{WORDS[i % 10]} film ", "choices": [f"{WORDS[i % 7]} {LONG}", "bad"], "answer": f"{WORDS[i % 7]} {LONG}"}
        for i in range(20)
        if i % 7 != 1
    ]
    data, model = jsonl(tmp_path / "choices.jsonl", rows), gpt2(tmp_path)
    assert main(words(tmp_path, model, "multiple-choice", data=data)) == 0
    run = str(tmp_path / "run")
    assert "max_length is 32" in record(tmp_path).preflight["warnings"][0]
    scores = json_of(capsys, ["evaluate", run, "--data", data, "--generate"])
    assert scores["rows"] == len(rows)

    opened = open_run(run)
    tokenizer, base = opened.processor, opened.model
    prompt = " ".join(WORDS[:20])
    capsys.readouterr()
    together = opened.generate([prompt, "good film"], max_new_tokens=24)
    assert "1 of 2 answers have fewer than 24 tokens" in capsys.readouterr().err
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    expected = base.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert together[0] == tokenizer.decode(expected[0, 20:], skip_special_tokens=True)
    alone = opened.generate("good film", max_new_tokens=24)
    assert together[1] == alone[0], "another prompt of the call does not shorten an answer"
    message = refused(["generate", run, "--prompt", "good", "--prompt", LONG], tmp_path, capsys, "the prompt has 60 tokens")
    assert "prompt 2" in message


def test_a_choice_is_cut_and_scored_like_the_rest(tmp_path) -> None:
    """The scores of what fits, by the model's own forward pass."""
    from alloralib.evaluation.choice import evaluate_choices

    model_path = gpt2(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_path).eval(), AutoTokenizer.from_pretrained(model_path)
    prompt, choices = "good film", [LONG, "bad story"]
    found = evaluate_choices(model, tokenizer, [prompt], [choices], [0]).items[0]["log_probabilities"]
    for score, choice in zip(found, choices, strict=True):
        ids = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"][:32]])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, 1:-1].log_softmax(-1)
        assert score == pytest.approx(logs.gather(1, ids[0, 2:, None]).sum().item(), rel=1e-4)


def test_rotary_positions_may_go_on(tmp_path, capsys) -> None:
    tokenizer = word_level(WORDS)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=16, pad_token_id=0, **SHAPE)
    model = save(tmp_path / "llama", LlamaForCausalLM(config), tokenizer)
    base = words(tmp_path, model, "causal-lm", data=texts(tmp_path), text_column="text")
    warnings = json_of(capsys, [*base, "--dry-run"])["warnings"]
    assert [text for text in warnings if "the longest row has 65 tokens, and the model was made for 16" in text]
    assert not [text for text in warnings if "max_length" in text]
    assert main([*base, "--max-length", "40"]) == 0


def with_padding_beyond(path: Path, model: Any, tokenizer: Any) -> str:
    """A tokenizer that got a new padding token, and a model that was not resized, as in many public repositories."""
    tokenizer.add_special_tokens({"pad_token": "[NEWPAD]"})
    model.config.pad_token_id = None if tokenizer.eos_token else model.config.pad_token_id
    assert tokenizer.pad_token_id == model.get_input_embeddings().weight.shape[0]
    return save(path, model, tokenizer)


def tight(extra: int = 0) -> Any:
    config = LlamaConfig(vocab_size=len(word_level(WORDS)) + extra, num_key_value_heads=1, eos_token_id=1, **SHAPE)
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
def test_padding_without_an_embedding(task: str, tmp_path) -> None:
    """A decoder: the end of text pads, which is the run of a tokenizer without a padding token."""
    columns = {"text_column": "text"}
    data = texts(tmp_path)
    adapters = []
    for name in ("beyond", "none"):
        tokenizer = word_level(WORDS)
        if name == "beyond":
            model = with_padding_beyond(tmp_path / name, tight(), tokenizer)
        else:
            tokenizer.pad_token = None
            model = save(tmp_path / name, tight(), tokenizer)
        (tmp_path / f"of-{name}").mkdir()
        assert main(words(tmp_path / f"of-{name}", model, task, data=data, **columns)) == 0
        adapters.append(load_file(tmp_path / f"of-{name}" / "run" / "adapter_model.safetensors"))
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[1])
    run = tmp_path / "of-beyond"
    assert "no embedding for the padding token '[NEWPAD]'" in record(run).preflight["warnings"][0]
    assert AutoTokenizer.from_pretrained(run / "run").pad_token == "</s>"
    opened = open_run(run / "run")
    if task == "classification":
        (together, _), (alone,) = opened.predict(["good", LONG]), opened.predict(["good"])
        assert together.probabilities == pytest.approx(alone.probabilities, rel=1e-4)
    else:
        assert opened.generate(["good", "the bad film"], max_new_tokens=4)


def test_padding_without_an_embedding_in_an_encoder(tmp_path, capsys) -> None:
    """The id in the model's configuration pads."""
    tokenizer = word_pieces()
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE))
    path = with_padding_beyond(tmp_path / "bert", model, tokenizer)
    data = texts(tmp_path)
    assert main(words(tmp_path, path, "classification", data=data, target_modules="query,value")) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "run").pad_token == "[PAD]"
    assert len(open_run(tmp_path / "run").predict(["good", LONG])) == 2


def test_padding_that_nothing_can_replace(tmp_path, capsys) -> None:
    tokenizer = word_level(WORDS)
    tokenizer.eos_token = None
    path = with_padding_beyond(tmp_path / "model", tight(), tokenizer)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    base = words(tmp_path, path, "causal-lm", data=texts(tmp_path), text_column="text")
    message = refused(base, tmp_path, capsys, r"padding token '\[NEWPAD\]' has id 23")
    assert "resize_token_embeddings" in message


def test_a_token_without_an_embedding(tmp_path, capsys) -> None:
    """A larger vocabulary is no fault; a token of it that the model has no embedding for is one, in every verb."""
    larger = word_level([*WORDS, "zebra", "yak"])
    path = save(tmp_path / "model", tight(), larger)
    good = texts(tmp_path)
    base = words(tmp_path, path, "causal-lm", data=good, text_column="text")
    assert main(base) == 0
    (tmp_path / "bad").mkdir()
    bad = jsonl(tmp_path / "bad" / "rows.jsonl", [{"text": f"the {w} film"} for w in [*WORDS, "zebra"]])
    wrong = words(tmp_path, path, "causal-lm", data=bad, text_column="text", output_dir=tmp_path / "other")
    for more in ([], ["--dry-run"]):
        message = refused([*wrong, *more], tmp_path, capsys, "'zebra' has id 23, and .* embeddings for ids below 23")
        assert "row 21" in message
    run = str(tmp_path / "run")
    refused(["evaluate", run, "--data", bad], tmp_path, capsys, "token 'zebra' has id 23")
    refused(["generate", run, "--prompt", "a zebra"], tmp_path, capsys, "prompt 1: token 'zebra' has id 23")


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_token_types_that_the_model_does_not_have(kind: str, pairs: bool, tmp_path) -> None:
    """BERT's tokenizer beside a model without token types, or with a single one."""
    tokenizer = word_pieces()
    if kind == "roberta":
        config: Any = RobertaConfig(vocab_size=len(tokenizer), type_vocab_size=1, pad_token_id=0, **SHAPE)
        model: Any = RobertaForMaskedLM(config)
    else:
        config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, hidden_dim=32, n_layers=1, n_heads=2, pad_token_id=0)
        model = DistilBertForMaskedLM(config)
    path = save(tmp_path / "model", model, tokenizer)
    rows = [{"a": f"{w} film", "b": f"{w} story", "label": i % 2} for i, w in enumerate(WORDS)]
    columns = {"text_column": "a"} | ({"text_pair_column": "b"} if pairs else {})
    targets = "query,value" if kind == "roberta" else "q_lin,v_lin"
    data = jsonl(tmp_path / "pairs.jsonl", rows)
    settings = {"r": 2, "max_steps": 2, "batch_size": 4, "target_modules": targets, "output_dir": str(tmp_path / "run")}
    train(RunConfig.of({"task": "classification", "model": path, "data": data, **columns, **settings}))
    opened = open_run(tmp_path / "run")
    assert len(opened.predict([("good film", "bad story")] if pairs else ["good film"])) == 1
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "run").model_input_names


def test_token_types_that_the_model_has_are_used(tmp_path) -> None:
    tokenizer = word_pieces()
    path = save(tmp_path / "model", BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE)), tokenizer)
    rows = [{"a": f"{w} film", "b": f"{w} story", "label": i % 2} for i, w in enumerate(WORDS)]
    data = jsonl(tmp_path / "pairs.jsonl", rows)
    settings = {"text_column": "a", "text_pair_column": "b", "max_steps": 1, "output_dir": str(tmp_path / "run"), "r": 2}
    train(RunConfig.of({"task": "classification", "model": path, "data": data, "target_modules": ["query"], **settings}))
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "run").model_input_names


def pictures(path: Path, sizes: list[tuple[int, int]]) -> str:
    for i in range(16):
        folder = path / "images" / ("dark" if i % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", sizes[i % len(sizes)], (i, 200 * (i % 2), 7 * i)).save(folder / f"{i}.png")
    return str(path / "images")


def vit(path: Path, processor: dict[str, Any], channels: int = 3) -> str:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4, num_channels=channels)).save_pretrained(
        path / "vit"
    )
    ViTImageProcessor(**processor).save_pretrained(path / "vit")
    return str(path / "vit")


EIGHT = {"size": {"height": 8, "width": 8}}
IMAGES: dict[str, tuple[dict[str, Any], int, list[tuple[int, int]], str]] = {
    "size": (
        {"size": {"height": 12, "width": 12}},
        3,
        [(8, 8)],
        r"image size 8\) does not take the images of shape \(3, 12, 12\)",
    ),
    "channels": (EIGHT, 1, [(8, 8)], r"channels 1, image size 8\) does not take the images of shape \(3, 8, 8\)"),
    "sizes": ({"do_resize": False}, 3, [(8, 8), (8, 12)], r"of shape \(3, \d+, 8\) and of shape \(3, \d+, 8\)"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_the_model_does_not_take(name: str, tmp_path, capsys) -> None:
    processor, channels, sizes, match = IMAGES[name]
    model = vit(tmp_path, processor, channels)
    base = words(tmp_path, model, "image-classification", data=pictures(tmp_path, sizes))
    refused([*base, "--dry-run"], tmp_path, capsys, match)
    assert "preprocessor_config.json" in refused(base, tmp_path, capsys, match)


def test_a_run_without_a_length_of_its_own(tiny_llama, reviews, tmp_path) -> None:
    """The record says which length it was; the command that repeats the run says what was asked for."""
    settings = {"task": "classification", "model": tiny_llama, "data": str(reviews), "output_dir": str(tmp_path / "run")}
    made = train(RunConfig.of(settings | {"max_steps": 1, "r": 2}))
    assert made.config["max_length"] == 512
    assert "--max-length" not in made.command
    assert RunConfig.of(made.config).max_length == 512
    assert dry_run(RunConfig.of(settings | {"overwrite": True}))["warnings"] == []
    assert llama().config.max_position_embeddings > 512


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_rows_are_padded_on_the_right_where_positions_are_looked_up(kind: str, tmp_path) -> None:
    """A tokenizer that pads on the left, as many of decoders do: a row's classes must not depend on its batch."""
    tokenizer = word_level(WORDS)
    torch.manual_seed(0)
    if kind == "bert":
        config: Any = BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE)
        path = save(tmp_path / "model", BertForMaskedLM(config), tokenizer)
    else:
        path = gpt2(tmp_path)
    settings = Path(path) / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))
    assert AutoTokenizer.from_pretrained(path).padding_side == "left"
    targets = "query,value" if kind == "bert" else "c_attn,c_fc"
    flags = {"target_modules": targets, "learning_rate": 0.1, "max_length": 30}
    assert main(words(tmp_path, path, "classification", data=texts(tmp_path), **flags)) == 0
    run = open_run(tmp_path / "run")
    (together, _), (alone,) = run.predict(["good", LONG]), run.predict(["good"])
    assert together.probabilities == pytest.approx(alone.probabilities, rel=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "run").padding_side == "right"
