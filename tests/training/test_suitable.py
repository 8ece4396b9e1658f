"""Models that a task cannot train are refused by name, with what to do."""

import json

import datasets
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from alloralib.cli.main import main
from alloralib.errors import ModelError
from alloralib.evaluation.scoring import class_logits
from alloralib.training.models import load_model, load_processor
from alloralib.training.suitable import beside_the_text, check_causal, check_kind

from ..adapters.models import gpt2, llama, mixtral
from ..architectures.models import (
    CLASSIFIERS,
    IMAGE_CLASSIFIERS,
    LANGUAGE_MODELS,
    OTHER_CLASSIFIERS,
    OTHER_LANGUAGE_MODELS,
    SHAPE,
    save_model,
)
from ..architectures.runs import Case
from ..cli.commands import refused
from ..trained import command


@pytest.mark.parametrize(
    ("make", "task", "match"),
    [
        (OTHER_CLASSIFIERS["T5"], "causal-lm", "t5 is an encoder-decoder"),
        (OTHER_CLASSIFIERS["BART"], "causal-lm", "bart is an encoder-decoder"),
        (CLASSIFIERS["DistilBERT"], "causal-lm", "no language models of the architecture distilbert"),
        (CLASSIFIERS["BERT"], "causal-lm", "every position sees the tokens after it"),
        (CLASSIFIERS["RoBERTa"], "causal-lm", "every position sees the tokens after it"),
        (IMAGE_CLASSIFIERS["ViT"], "classification", "no text classifiers of the architecture vit"),
        (CLASSIFIERS["BERT"], "image-classification", "no image classifiers of the architecture bert"),
    ],
)
def test_a_model_of_another_kind(make, task: str, match: str, tmp_path, capsys) -> None:
    flags = Case(make, task).prepare(tmp_path)
    if task == "classification":  # an image model has no tokenizer, which would be the first thing to be missed
        hf.BertTokenizer().save_pretrained(tmp_path / "model")
    if task == "image-classification":
        hf.ViTImageProcessor().save_pretrained(tmp_path / "model")
    refused(command(tmp_path, **flags), tmp_path, capsys, match)


@pytest.mark.parametrize("make", [llama, gpt2, mixtral, *LANGUAGE_MODELS.values()])
def test_decoders_see_no_later_token(make) -> None:
    made = make()
    check_causal(made[0] if isinstance(made, tuple) else made, "model")


def test_an_encoder_made_a_decoder_is_one(tmp_path) -> None:
    config = hf.BertConfig(vocab_size=40, **SHAPE, is_decoder=True)
    check_causal(hf.BertLMHeadModel(config), "model")
    with pytest.raises(ModelError, match="sees the tokens after it"):
        check_causal(hf.BertLMHeadModel(hf.BertConfig(vocab_size=40, **SHAPE)), "model")


def test_decoders_that_transformers_made_without_a_causal_mask() -> None:
    """As RoFormer was in some of its versions: `is_decoder` alone does not tell."""
    config = hf.RoFormerConfig(vocab_size=40, embedding_size=16, **SHAPE, is_decoder=True)
    model = hf.RoFormerForCausalLM(config).eval()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.no_grad():
        logits = model(ids).logits[:, :3]
    if torch.allclose(logits[0], logits[1], atol=1e-5):
        check_causal(model, "model")
    else:
        with pytest.raises(ModelError, match="sees the tokens after it"):
            check_causal(model, "model")


def test_the_trial_changes_neither_the_model_nor_the_random_state() -> None:
    model = llama().train()
    before = torch.get_rng_state()
    check_causal(model, "model")
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_known_kinds_are_let_through() -> None:
    for config, task in (
        (hf.LlamaConfig(), "chat"),
        (hf.T5Config(), "classification"),
        (hf.ViTConfig(), "image-classification"),
    ):
        check_kind(config, task, "model")


@pytest.mark.parametrize("name", ["GPT-2", "Gemma", "BERT"])
def test_a_classifier_gives_a_row_the_same_logits_in_every_batch(name: str, tmp_path) -> None:
    """Also if its tokenizer pads on the left, where padding would shift the positions of a GPT-2."""
    path = save_model(CLASSIFIERS[name], tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))
    assert hf.AutoTokenizer.from_pretrained(path).padding_side == "left"
    tokenizer = load_processor(path, "classification")
    model = load_model(path, task="classification", labels=["a", "b"], dtype=torch.float32, pad_token_id=tokenizer.pad_token_id)
    rows = datasets.Dataset.from_dict(dict(tokenizer(["good film", "the plot was poor and the actor awful"])))
    found = [class_logits(model, rows, hf.DataCollatorWithPadding(tokenizer), batch_size=size) for size in (1, 2)]
    torch.testing.assert_close(*found)


def test_xlnet_keeps_its_padding_on_the_left(tmp_path) -> None:
    """It takes a row's last position for its end."""
    config = hf.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=32)
    hf.XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    hf.XLNetTokenizer(vocab=[("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), ("a", -1.0)]).save_pretrained(
        tmp_path
    )
    assert load_processor(str(tmp_path), "classification").padding_side == "left"


def test_text_does_not_train_what_reads_images(tmp_path) -> None:
    flags = Case(OTHER_LANGUAGE_MODELS["Gemma 3 with images"], "causal-lm").prepare(tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(flags["model"])
    assert beside_the_text(model) == ["model.vision_tower", "model.multi_modal_projector"]
    assert main(command(tmp_path, **flags)) == 0
    names = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert names
    assert all("language_model" in name for name in names)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_model_of_text_alone_has_nothing_beside_it(make) -> None:
    assert beside_the_text(make()) == []


@pytest.mark.parametrize("name", ["ALBERT", "MPNet"])
def test_checkpointing_where_the_architecture_has_none(name: str, tmp_path, capsys) -> None:
    flags = Case(CLASSIFIERS[name], "classification").prepare(tmp_path)
    refused([*command(tmp_path, **flags), "--gradient-checkpointing"], tmp_path, capsys, "does not support it")


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_a_text_with_the_token_by_which_its_model_finds_the_end(name: str, tmp_path, capsys) -> None:
    flags = Case(OTHER_CLASSIFIERS[name], "classification").prepare(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("actor", "</s>", 1))
    line = next(i for i, text in enumerate(rows.read_text().splitlines(), start=1) if "</s>" in text)
    refused(command(tmp_path, **flags), tmp_path, capsys, f"rows.jsonl.*{line}.*has 2 end-of-text tokens")


@pytest.mark.parametrize(("name", "target", "near"), [("Phi-3", "q_proj", "qkv_proj"), ("Llama", "qkv_proj", "k_proj")])
def test_targets_of_another_architecture(name: str, target: str, near: str, tmp_path, capsys) -> None:
    flags = Case(LANGUAGE_MODELS[name], "causal-lm", (("target_modules", f"o_proj,{target}"),)).prepare(tmp_path)
    assert near in refused(command(tmp_path, **flags), tmp_path, capsys, f"target module '{target}'").partition("remedy")[2]
