"""Examples per kind of task: what a trainer gets, and the rows that cannot be trained on."""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from alloralib.data.choices import questions
from alloralib.data.examples import build_examples, collator
from alloralib.data.forms import Columns
from alloralib.data.images import image_sources
from alloralib.data.labels import label_ids, label_names, labels
from alloralib.data.parts import load_parts
from alloralib.data.registry import REGISTRY
from alloralib.data.table import Table, read_table
from alloralib.errors import DataError
from alloralib.training.models import load_tokenizer, locate

from ..places import data_dir

FIXTURES = Path(__file__).parent / "fixtures"
TEXT = Columns.of("classification", {})
PAIR = Columns.of("classification", {"text_pair": "text_pair"})
IMAGE = Columns.of("image-classification", {})
CHOICE = Columns.of("multiple-choice", {})


@pytest.fixture(scope="module")
def minilm() -> Any:
    return load_tokenizer(locate("minilm-l6"))


def table(**columns: list[Any]) -> Table:
    return Table("rows.csv", "0", columns, [i + 2 for i in range(len(next(iter(columns.values()))))])


# text


def test_texts_and_labels(minilm) -> None:
    rows = table(text=["a good film", "bad", "fine"], label=["pos", "neg", "pos"])
    examples = build_examples("classification", rows, TEXT, processor=minilm, names=["neg", "pos"], max_length=4)
    assert examples["labels"][:] == [1, 0, 1]
    assert examples["row"][:] == [0, 1, 2]
    assert minilm.decode(examples[0]["input_ids"]) == "[CLS] a good [SEP]"
    batch = collator("classification", minilm)([examples[0], examples[1]])
    assert "row" not in batch
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 4)
    assert batch["labels"].tolist() == [1, 0]


def test_pairs_are_two_segments(minilm) -> None:
    rows = table(text=["one", "two"], text_pair=["three", "four"], label=["a", "b"])
    first = build_examples("classification", rows, PAIR, processor=minilm)[0]
    assert minilm.decode(first["input_ids"]) == "[CLS] one [SEP] three [SEP]"
    assert first["token_type_ids"] == [0, 0, 0, 1, 1]


def test_nothing_to_tokenize_is_refused(minilm) -> None:
    rows = table(text=["one", "\u200b\u200b"], label=["a", "b"])
    with pytest.raises(DataError, match=r"row 2 \(line 3\).*makes no token"):
        build_examples("classification", rows, TEXT, processor=minilm)


@pytest.mark.parametrize("value", [None, "", " ", -1, "-1", 1.5])
def test_a_row_without_a_label_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"row 2 \(line 3\): column 'label' has no label"):
        labels(table(label=["a", value]), "label")


def test_classes_are_numbered_the_same_every_time() -> None:
    assert label_names(table(label=["b", "a", "c", "a"]), "label") == ["a", "b", "c"]
    assert label_names(table(label=[10, 2, 0]), "label") == ["0", "2", "10"]
    assert label_names(table(label=["10", "2", "x"]), "label") == ["10", "2", "x"]
    emotions = REGISTRY["emotion"].labels
    assert label_names(table(label=["joy", "fear"]), "label", emotions) == list(emotions or ())
    assert label_ids(table(label=["c", "a"]), "label", ["a", "b", "c"]) == [2, 0]
    with pytest.raises(DataError, match=r"row 1 \(line 2\): label 'A'.*3 classes[\s\S]*known names: a, b, c"):
        label_ids(table(label=["A"]), "label", ["a", "b", "c"])
    with pytest.raises(DataError, match="one class only, 'a'"):
        label_names(table(label=["a", "a"]), "label")


# multiple choice


@pytest.mark.parametrize("name", ["choices.jsonl", "choices-index.jsonl", "choices.csv"])
def test_the_right_choice_is_the_completion(name: str, minilm) -> None:
    read = read_table(str(FIXTURES / name))
    assert [q.answer for q in questions(read, CHOICE)] == [0, 1]
    assert questions(read, CHOICE)[1].choices == ("blue", "green", "red")
    columns = Columns.of("causal-lm", {"prompt": "prompt", "completion": "completion"})
    answered = table(prompt=read.columns["prompt"], completion=["blue", "green"])
    assert (
        build_examples("multiple-choice", read, CHOICE, processor=minilm)[:]
        == (build_examples("causal-lm", answered, columns, processor=minilm)[:])
    )


MALFORMED: dict[str, tuple[Any, Any, str]] = {
    "other": (["a", "bb"], "bc", r"'bc' is none of the 2 choices[\s\S]*known names: a, bb|did you mean"),
    "index": (["a", "b"], 2, "answer 2 is none"),
    "negative": (["a", "b"], -1, "answer -1 is none"),
    "true": (["a", "b"], True, "answer True is none"),
    "nothing": (["a", "b"], None, "answer None is none"),
    "one": (["a"], "a", "at least two choices"),
    "blank": (["a", " "], "a", "at least two choices"),
    "twice": (["a", "a"], "a", "two choices are the same"),
    "text": ("a or b", "a", "not a JSON list"),
    "number": (3, "a", "at least two choices"),
    "half": ('["a", "\\ud83d"]', "a", "half of a surrogate pair"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_questions_are_refused(case: str) -> None:
    choices, answer, match = MALFORMED[case]
    rows = table(prompt=["p", "p"], choices=[["a", "b"], choices], answer=["a", answer])
    with pytest.raises(DataError, match=match) as caught:
        questions(rows, CHOICE)
    assert "rows.csv, row 2 (line 3)" in str(caught.value)


# images


@pytest.fixture
def vit() -> Any:
    return ViTImageProcessor(size={"height": 8, "width": 8})


@pytest.mark.parametrize("name", ["images", "images.csv", "images.parquet"])
def test_every_form_of_images_gives_the_same_pixels(name: str, vit) -> None:
    examples, again = (
        build_examples("image-classification", read_table(str(FIXTURES / form)), IMAGE, processor=vit)
        for form in (name, "images")
    )
    assert examples["labels"][:] == [0, 0, 1, 1]
    for i in range(4):
        assert examples[i]["pixel_values"].shape == (3, 8, 8)
        assert torch.equal(examples[i]["pixel_values"], again[i]["pixel_values"])
    grey = examples[0]["pixel_values"]
    assert torch.equal(grey[0], grey[1]), "the first image is grey"
    batch = collator("image-classification", vit)([examples[0], examples[2]])
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert batch["labels"].tolist() == [0, 1]
    assert "row" not in batch


def test_transformers_trainer_takes_image_examples(vit) -> None:
    """With unused columns dropped, which is transformers' default."""
    examples = build_examples("image-classification", read_table(str(FIXTURES / "images")), IMAGE, processor=vit)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4, num_labels=2))
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(scratch, max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True,
                                     save_strategy="no", disable_tqdm=True)  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=examples, data_collator=collator("image-classification", vit))
        assert trainer.train().training_loss > 0


def test_real_photographs_in_one_directory_per_class(tmp_path, vit) -> None:
    with zipfile.ZipFile(data_dir() / "cifar10/cifar10_jpg_subset.zip") as archive:
        found: dict[str, list[str]] = {}
        for name in archive.namelist():
            if name.endswith(".jpg"):
                found.setdefault(str(Path(name).parent), []).append(name)
        for names in found.values():
            archive.extractall(tmp_path, names[:20])
    (train,) = {path.parent.parent for path in tmp_path.rglob("*.jpg") if "train" in path.parts}
    parts = load_parts("image-classification", IMAGE, data=str(train), test_data=str(train.parent / "test"))
    names = label_names(parts.train, "label")
    assert len(names) == 10
    assert len(parts.train) + sum(parts.removed.values()) == len(parts.test) == 200
    examples = build_examples("image-classification", parts.test, IMAGE, processor=vit, names=names)
    assert examples["labels"][:] == [i for i in range(10) for _ in range(20)]
    with pytest.raises(DataError, match=r"directories are parts \(test, train\)"):
        read_table(str(train.parent))


def cut(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: len(content) // 2]


BROKEN: dict[str, tuple[Any, str]] = {
    "text": (b"not an image", "not an image: encoded bytes"),
    "empty": (b"", "not an image"),
    "cut png": (cut(FIXTURES / "images/dog/0.png"), "not an image"),
    "cut jpeg": (cut(FIXTURES / "images/dog/1.jpg"), "not an image"),
    "file": ("chat.csv", "not an image: .*chat.csv"),
    "missing": ("images/cat/9.png", "no such image file"),
    "none": (None, "has no image but 'None'"),
    "number": (3, "has no image but '3'"),
    "null": ({"bytes": None, "path": None}, "has no image"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_not_images_are_refused(case: str, vit) -> None:
    cell, match = BROKEN[case]
    rows = Table(str(FIXTURES / "images.csv"), "0", {"image": ["images/cat/0.png", cell], "label": ["a", "b"]}, [2, 3])
    with pytest.raises(DataError, match=match) as caught:
        build_examples("image-classification", rows, IMAGE, processor=vit)
    assert "images.csv, row 2 (line 3)" in str(caught.value)


def test_image_paths_are_relative_to_the_file_that_names_them() -> None:
    first = image_sources(read_table(str(FIXTURES / "images.csv")), "image")[0]
    assert first == {"bytes": None, "path": str(FIXTURES / "images/cat/0.png")}
