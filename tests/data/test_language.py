"""Rows of language models: the tokens, labels and batches that TRL's SFTTrainer makes, and the rows that are refused."""

from typing import Any

import datasets
import pytest
import torch
import trl
from tokenizers.processors import TemplateProcessing
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from alloralib.data.examples import build_examples, collator
from alloralib.data.forms import Columns
from alloralib.data.language import IGNORED
from alloralib.data.table import Table
from alloralib.errors import DataError
from alloralib.training.models import load_tokenizer, locate

from ..adapters.models import llama
from ..conftest import WORDS
from ..tiny import bytes_of, word_level

TEXT = Columns.of("causal-lm", {})
ANSWERED = Columns.of("causal-lm", {"prompt": "prompt", "completion": "completion"})
CHOICE = Columns.of("multiple-choice", {})


def table(**columns: list[Any]) -> Table:
    return Table("rows.csv", "0", columns, [i + 2 for i in range(len(next(iter(columns.values()))))])


def bracketed(first: str, last: str) -> Any:
    """A word-level tokenizer that puts tokens of its own around every text."""
    tokenizer = word_level([*WORDS, "<s>"])
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {first, last} - {""}]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first} $A {last}".strip(), special_tokens=special)
    return tokenizer


def gpt2() -> Any:
    from transformers import GPT2Tokenizer

    tokenizer = bytes_of(GPT2Tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


TOKENIZERS = {
    "words": lambda: word_level(WORDS),
    "bos": lambda: bracketed("<s>", ""),
    "eos": lambda: bracketed("", "</s>"),
    "bos-and-eos": lambda: bracketed("<s>", "</s>"),
    "bytes": gpt2,
    "smollm2": lambda: load_tokenizer(locate("smollm2-135m")),
}
ROWS = {
    "prompt": ["good", "the film was", "a very", "the plot of the story is"],
    "completion": [" film", " very good</s>", "bad music", "awful and the ending was poor"],
    "text": ["the film was good", "bad", "a very good story</s>", "the actor and the music of the ending was not very fine"],
}


def trls(tokenizer: Any, rows: dict[str, list[str]], max_length: int, tmp_path: Any) -> Any:
    """The rows as TRL's trainer prepares them."""
    settings = trl.SFTConfig(
        str(tmp_path), max_length=max_length, report_to="none", use_cpu=True, bf16=False, completion_only_loss="prompt" in rows
    )
    data = datasets.Dataset.from_dict(rows)
    return trl.SFTTrainer(llama(), settings, train_dataset=data, processing_class=tokenizer).train_dataset


@pytest.mark.parametrize("max_length", [512, 8])
@pytest.mark.parametrize("form", ["prompt", "text"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_and_labels_are_those_of_trl(name: str, form: str, max_length: int, tmp_path) -> None:
    tokenizer = TOKENIZERS[name]()
    if max_length == 8 and name == "bytes":
        max_length = 30  # of bytes, so that every prompt fits
    columns, parts = (ANSWERED, ("prompt", "completion")) if form == "prompt" else (TEXT, ("text",))
    ours = build_examples("causal-lm", table(**ROWS), columns, processor=tokenizer, max_length=max_length)
    theirs = trls(tokenizer, {part: ROWS[part] for part in parts}, max_length, tmp_path)
    assert ours["row"][:] == [0, 1, 2, 3]
    for column in ("input_ids", "labels"):
        assert ours[column][:] == theirs[column][:], column
    assert any(label == IGNORED for row in ours["labels"] for label in row) == (form == "prompt")


def test_a_label_in_the_wrong_place_is_told_apart(tmp_path) -> None:
    ours = build_examples("causal-lm", table(**ROWS), ANSWERED, processor=word_level(WORDS), max_length=512)
    whole = build_examples("causal-lm", table(text=[p + c for p, c in zip(ROWS["prompt"], ROWS["completion"], strict=True)]),
                           TEXT, processor=word_level(WORDS), max_length=512)  # fmt: skip
    assert ours["input_ids"][:] == whole["input_ids"][:]
    assert ours["labels"][:] != whole["labels"][:]


def test_the_prompt_and_the_completion_may_share_a_token(tmp_path) -> None:
    """The completion starts where the tokens differ, inside what was the prompt."""
    tokenizer = load_tokenizer(locate("smollm2-135m"))
    rows = {"prompt": ["A walking"], "completion": ["stick is"]}
    ours = build_examples("causal-lm", table(**rows), ANSWERED, processor=tokenizer)[0]
    assert ours["labels"] == trls(tokenizer, rows, 512, tmp_path)[0]["labels"]
    assert tokenizer.decode([label for label in ours["labels"] if label != IGNORED]).endswith("stick is<|im_end|>")


def test_a_tokenizer_without_an_end_of_text_adds_none() -> None:
    tokenizer = word_level(WORDS)
    tokenizer.eos_token = None
    example = build_examples("causal-lm", table(text=["good film"]), TEXT, processor=tokenizer)[0]
    assert tokenizer.decode(example["input_ids"]) == "good film"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_trls_whatever_side_the_tokenizer_pads_on(side: str) -> None:
    tokenizer = word_level(WORDS)
    tokenizer.padding_side = side
    examples = build_examples("causal-lm", table(**ROWS), ANSWERED, processor=tokenizer)
    batch = collator("causal-lm", tokenizer)(list(examples))
    theirs = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(list(examples))
    assert batch.keys() == theirs.keys() == {"input_ids", "attention_mask", "labels"}
    for name, tensor in theirs.items():
        assert batch[name].dtype == torch.int64
        assert torch.equal(batch[name], tensor), name


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    rows = table(prompt=["good", "good film story", "bad film plot was"], completion=[" a", " a", " a"])
    with pytest.raises(DataError, match=r"row 2 \(line 3\): no trained token among the first 3 \(and 1 more: .*row 3"):
        build_examples("causal-lm", rows, ANSWERED, processor=word_level(WORDS), max_length=3)


@pytest.mark.parametrize("part", ["prompt", "completion"])
def test_a_text_without_tokens_is_refused(part: str) -> None:
    rows = {"prompt": ["good", "bad"], "completion": ["film", "plot"]}
    rows[part] = [rows[part][0], "\x1c\x1f\u200b"]
    tokenizer = load_tokenizer(locate("minilm-l6"))
    with pytest.raises(DataError, match=r"row 2 \(line 3\).*makes no token"):
        build_examples("causal-lm", table(**rows), ANSWERED, processor=tokenizer)
