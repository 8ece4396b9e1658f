"""Registered sets from their publishers' files, from a plain directory, and (with a stand-in) from the hub."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from alloralib.data.commonsense import instruction
from alloralib.data.parts import load_parts
from alloralib.data.registered import read_part
from alloralib.data.registry import PARTS, REGISTRY
from alloralib.data.table import read_table
from alloralib.errors import DataError

from ..places import data_dir
from .leaks import check_no_leak

# rows as each set's SOURCE.txt and the list of the sets state them; None where those files have no such part
REAL = {
    "banking77": (10003, None, 3080),
    "emotion": (16000, 2000, 2000),
    "rotten_tomatoes": (10662, None, None),
    "sms_spam": (5574, None, None),
    "sst2": (6920, 872, 1821),
    "trec": (5452, None, 500),
    "e2e_nlg": (4672, None, 4693),
    "boolq": (9427, None, 3270),
    "openbookqa": (4957, None, 500),
    "arc_easy": (2251, None, 2376),
    "arc_challenge": (1119, None, 1172),
    "piqa": (None, None, 1838),
    "social_i_qa": (None, None, 1954),
    "winogrande": (None, None, 1267),
}
TRAINABLE = [name for name, (train, _, _) in REAL.items() if train]


@pytest.mark.parametrize("name", REAL)
def test_published_files_are_read_whole(name: str) -> None:
    known = REGISTRY[name]
    tables = [read_part(name, part, data_dir()) for part in PARTS]
    assert tuple(None if t is None else len(t) for t in tables) == REAL[name]
    for table in filter(None, tables):
        assert list(table.columns) == list(known.columns.named())
        if known.kind == "classification":
            assert all(text.strip() for text in table.columns["text"])
            if known.labels is not None:
                assert set(table.columns["label"]) == set(known.labels)
        elif known.kind == "multiple-choice":
            for choices, answer in zip(table.columns["choices"], table.columns["answer"], strict=True):
                assert answer in choices
                assert 2 <= len(choices) <= 5


def test_published_labels_belong_to_their_texts() -> None:
    def counts(name: str, part: Any) -> Counter[str]:
        table = read_part(name, part, data_dir())
        assert table is not None
        return Counter(table.columns["label"])

    assert counts("rotten_tomatoes", "train") == {"neg": 5331, "pos": 5331}
    assert len(counts("banking77", "train")) == 77
    assert set(counts("banking77", "train")) == set(json.loads((data_dir() / "banking77/categories.json").read_text()))
    spam, emotion = counts("sms_spam", "train"), counts("emotion", "train")
    assert round(spam["ham"] / spam.total(), 2) == 0.87
    assert emotion.most_common(1)[0][0] == "joy"
    assert counts("trec", "test")["DESC"] == 138
    table = read_part("sst2", "validation", data_dir())
    assert table is not None
    assert table.columns["text"][0] == "one long string of cliches ."
    assert table.columns["label"][0] == "negative"
    assert table.lines is not None
    assert table.where(0).endswith("stsa.binary.dev, row 1 (line 1)")


def test_only_a_line_feed_ends_a_line() -> None:
    table = read_part("rotten_tomatoes", "train", data_dir())
    assert table is not None
    assert sum("\x85" in text for text in table.columns["text"]) > 0


@pytest.mark.parametrize("name", TRAINABLE)
def test_no_example_is_in_two_parts(name: str) -> None:
    known = REGISTRY[name]
    parts = load_parts(known.kind, known.columns, data=name, data_dir=data_dir(), validation_share=0.1)
    check_no_leak(known.kind, known.columns, parts)
    train, _, test = REAL[name]
    assert train is not None
    if test is not None:
        assert len(parts.test) == test, "given test rows stay as they are"
    kept = len(parts.train) + len(parts.validation or ()) + (len(parts.test) if test is None else 0)
    assert kept + sum(parts.removed[name] for name in ("train", "conflicts", "train/test")) == train


def test_files_of_no_registered_set_are_plain_files() -> None:
    table = read_table(str(data_dir() / "math/math_data.json.gz"))
    assert len(table) == 3260
    assert {"instruction", "output", "answer"} <= set(table.columns)
    assert table.lines is not None
    assert table.lines == sorted(set(table.lines))


def test_known_duplicates_are_counted() -> None:
    known = REGISTRY["sms_spam"]
    assert load_parts(known.kind, known.columns, data="sms_spam", data_dir=data_dir()).removed["train"] > 400
    known = REGISTRY["emotion"]
    others = {"train/test": 11, "train/validation": 5, "validation/test": 3, "unlabelled": 0}
    # all but one of its repeated texts have two labels
    parts = load_parts(known.kind, known.columns, data="emotion", data_dir=data_dir())
    assert parts.removed == {"train": 1, "conflicts": 60} | others
    assert "30 examples have several labels or answers, in 60 rows" in parts.notes[0]
    old = load_parts(known.kind, known.columns, data="emotion", data_dir=data_dir(), held_out="random")
    assert old.removed == {"train": 1, "conflicts": 30} | others


def test_a_set_without_training_rows_says_so() -> None:
    known = REGISTRY["piqa"]
    with pytest.raises(DataError, match="piqa has no train rows in"):
        load_parts(known.kind, known.columns, data="piqa", data_dir=data_dir())


def test_another_sets_rows_can_be_the_test() -> None:
    known = REGISTRY["arc_easy"]
    parts = load_parts(known.kind, known.columns, data="arc_easy", test_data="piqa", data_dir=data_dir())
    assert len(parts.test) == 1838
    with pytest.raises(DataError, match="piqa has no validation rows in"):
        load_parts(known.kind, known.columns, data="arc_easy", validation_data="piqa", data_dir=data_dir())


# the plain layout


def write(path: Any, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_plain_directory_with_default_or_hub_names(tmp_path) -> None:
    write(tmp_path / "bias_in_bios/train.jsonl", [{"hard_text": "She cuts.", "profession": 25, "gender": 1}])
    write(tmp_path / "bias_in_bios/dev.jsonl", [{"text": "He paints.", "label": "painter"}])
    train, validation, test = (read_part("bias_in_bios", part, tmp_path) for part in PARTS)
    assert train is not None
    assert validation is not None
    assert train.columns == {"text": ["She cuts."], "label": ["surgeon"]}
    assert validation.columns == {"text": ["He paints."], "label": ["painter"]}
    assert test is None


def test_a_full_e2e_directory_trains_on_the_training_set(tmp_path) -> None:
    for stem, ref in ("trainset", "a"), ("devset", "b"), ("testset_w_refs", "c"):
        (tmp_path / "e2e_nlg").mkdir(exist_ok=True)
        (tmp_path / f"e2e_nlg/{stem}.csv").write_text(f"mr,ref\nname[X],{ref}\n")
    assert [t and t.columns["completion"] for t in (read_part("e2e_nlg", p, tmp_path) for p in PARTS)] == [["a"], ["b"], ["c"]]


def test_a_missing_set_names_the_files_that_were_looked_for(tmp_path) -> None:
    with pytest.raises(DataError, match=r"stsa\.binary\.train\[\.gz\]") as caught:
        read_part("sst2", "train", tmp_path)
    assert "sst2/{train|validation|test}.{csv|tsv|jsonl|json|parquet}[.gz]" in str(caught.value)
    with pytest.raises(DataError, match="commonsense/ARC-Easy"):
        read_part("arc_easy", "test", tmp_path)
    with pytest.raises(DataError, match="did you mean 'arc_easy'"):
        read_part("arceasy", "test", tmp_path)


WRONG = {
    "columns": ("sst2/train.jsonl", '{"line": "a", "label": 1}\n', r"sst2 needs a column 'text'"),
    "label": ("sst2/train.jsonl", '{"text": "a", "label": "positiv"}\n', r"row 1 \(line 1\): 'positiv'[\s\S]*'positive'"),
    "number": ("sst2/train.jsonl", '{"text": "a", "label": 2}\n', "'2' is no class of sst2"),
    "line": ("trec/TREC.train", "DESC:manner What ?\nno label\n", r"TREC.train, line 2: not a row"),
    "format": ("boolq/train.json", '[{"instruction": "a?", "answer": "true"}]', r"row 1.*Answer format"),
    "empty": ("trec/TREC.train", "", "no rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_malformed_files_of_a_set_are_refused(tmp_path, case: str) -> None:
    file, content, match = WRONG[case]
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=match):
        read_part(file.split("/")[0], "train", tmp_path)


# the hub, which no test reaches: rows in its shape

ARC = {
    "id": "x",
    "question": "Which factor will most likely cause a person to develop a fever?",
    "choices": {
        "text": [
            "a leg muscle relaxing after exercise",
            "a bacterial population in the bloodstream",
            "several viral particles on the skin",
            "carbohydrates being digested in the stomach",
        ],
        "label": ["A", "B", "C", "D"],
    },
    "answerKey": "B",
}
HUB: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bias_in_bios": ({"hard_text": "a", "profession": 27, "gender": 0}, {"text": "a", "label": "yoga_teacher"}),
    "yelp_review_full": ({"label": 1, "text": "a"}, {"text": "a", "label": "2 star"}),
    "amazon_polarity": ({"label": 1, "title": "t", "content": "a"}, {"text": "a", "label": "positive"}),
    "sms_spam": ({"sms": "a\n", "label": 0}, {"text": "a\n", "label": "ham"}),
    "snli": (
        {"premise": "a", "hypothesis": "b", "label": 2},
        {"text": "a", "text_pair": "b", "label": "contradiction"},
    ),
    "medical_questions_pairs": (
        {"dr_id": 1, "question_1": "a", "question_2": "b", "label": 1},
        {"text": "a", "text_pair": "b", "label": "same"},
    ),
    "toxigen": ({"text": "a", "toxicity_ai": 3.0, "toxicity_human": 2.6}, {"text": "a", "label": "toxic"}),
    "trec": ({"text": "a", "coarse_label": 2, "fine_label": 7}, {"text": "a", "label": "DESC"}),
    "e2e_nlg": (
        {"meaning_representation": "name[X]", "human_reference": "X."},
        {"prompt": "Describe the restaurant in a sentence or two.\nname[X]\n", "completion": "X."},
    ),
}


def stand_in(monkeypatch, rows: list[dict[str, Any]], classes: dict[str, list[str]] | None = None) -> list[Any]:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        made = datasets.Dataset.from_list(rows)
        for column, names in (classes or {}).items():
            made = made.cast_column(column, datasets.ClassLabel(names=names))
        return made

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub_become_parts(monkeypatch, name: str) -> None:
    row, expected = HUB[name]
    asked = stand_in(monkeypatch, [row])
    table = read_part(name, "train")
    assert table is not None
    assert {part: values[0] for part, values in table.columns.items()} == expected
    assert asked == [(REGISTRY[name].hub.id, REGISTRY[name].hub.config, "train", REGISTRY[name].hub.revision)]


def test_class_names_of_the_hub_are_kept(monkeypatch) -> None:
    stand_in(
        monkeypatch, [{"text": "a", "label": 3}, {"text": "b", "label": -1}], {"label": list(REGISTRY["emotion"].labels or ())}
    )
    table = read_part("emotion", "test")
    assert table is not None
    assert table.columns["label"] == ["anger", None]


def test_a_part_that_is_not_on_the_hub_is_none(monkeypatch) -> None:
    assert stand_in(monkeypatch, []) == []
    assert read_part("imdb", "validation") is None


def test_without_the_hub_the_remedy_is_a_directory(monkeypatch) -> None:
    def unreachable(*given: Any, **named: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(DataError, match=r"stanfordnlp/sst2:train.*ConnectionError[\s\S]*--data-dir.*stsa\.binary\.train"):
        read_part("sst2", "train")


def test_images_of_the_hub_stay_encoded(monkeypatch) -> None:
    encoded = (Path(__file__).parent / "fixtures/images/cat/1.png").read_bytes()
    stand_in(monkeypatch, [{"image": {"bytes": encoded, "path": None}, "label": 1}], {"label": ["dog", "cat"]})
    load = datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: load(*a, **k).cast_column("image", datasets.Image()))
    assert read_table("me/pets").columns == {"image": [{"bytes": encoded, "path": None}], "label": ["cat"]}


def test_rows_without_a_label_are_left_out_and_counted(monkeypatch) -> None:
    rows = [{"premise": f"a{i}", "hypothesis": "b", "label": i % 4 - 1} for i in range(40)]
    stand_in(monkeypatch, rows)
    known = REGISTRY["snli"]
    parts = load_parts(known.kind, known.columns, data="snli", validation_share=0.1, test_share=0.1)
    assert parts.removed["unlabelled"] == 10
    assert len(parts.train) == 24
    assert None not in parts.train.columns["label"]


# commonsense: the published items again, from rows in the hub's shape


def test_an_arc_row_becomes_the_published_item() -> None:
    path = data_dir() / "commonsense/ARC-Easy/train.json.gz"
    item = json.loads(gzip.decompress(path.read_bytes()))[0]
    assert instruction("arc_easy", ARC) == (item["instruction"], item["answer"])


def split_options(text: str, noun: str) -> tuple[str, list[str]]:
    """Question and answers of a published instruction, by the first of each mark."""
    head, _, tail = text.partition(f"\n\n{noun}1: ")
    tail = tail[: tail.rindex("Answer format:")]
    tail = tail.removesuffix("\n\n") if tail.endswith("\n\n") else tail.removesuffix(" ")
    answers: list[str] = []
    while True:
        for gap in (" ", "\n\n"):
            one, mark, rest = tail.partition(f"{gap}{noun}{len(answers) + 2}: ")
            if mark:
                break
        answers.append(one)
        if not mark:
            return head.split(": ", 1)[1], answers
        tail = rest


def hub_row(task: str, text: str, answer: str) -> dict[str, Any]:
    if task == "boolq":
        question = text.removeprefix("Please answer the following question with true or false, question: ")
        return {"question": question.removesuffix("?\n\nAnswer format: true/false"), "answer": answer == "true"}
    noun = {"piqa": "Solution", "winogrande": "Option"}.get(task, "Answer")
    question, answers = split_options(text, noun)
    right = int(answer[-1])
    if task == "piqa":
        return {"goal": question, "sol1": answers[0], "sol2": answers[1], "label": right - 1}
    if task == "winogrande":
        return {"sentence": question, "option1": answers[0], "option2": answers[1], "answer": str(right)}
    if task == "social_i_qa":
        context, _, asked = question.rpartition(" ")
        return {"context": context, "question": asked, "label": str(right)} | dict(
            zip(("answerA", "answerB", "answerC"), answers, strict=True)
        )
    letters = "ABCDE"[: len(answers)]
    choices = {"text": answers, "label": list(letters)}
    stem = "question_stem" if task == "openbookqa" else "question"
    return {stem: question, "choices": choices, "answerKey": letters[right - 1]}


@pytest.mark.parametrize("task", ["boolq", "piqa", "social_i_qa", "winogrande", "arc_easy", "arc_challenge", "openbookqa"])
def test_every_row_becomes_the_published_item_character_by_character(task: str) -> None:
    table = read_part(task, "test", data_dir())
    assert table is not None
    for prompt, right in zip(table.columns["prompt"], table.columns["answer"], strict=True):
        text = prompt.split("### Instruction:\n", 1)[1].removesuffix("\n\n### Response:\n")
        answer = right.removeprefix("the correct answer is ")
        assert instruction(task, hub_row(task, text, answer)) == (text, answer)


def test_a_hellaswag_row_becomes_the_published_item(monkeypatch) -> None:
    row = {"activity_label": "Drums", "ctx": "A man", "endings": ["sits.", "sings.", "plays.", "sleeps."], "label": "2"}
    text, answer = instruction("hellaswag", row)
    assert text == (
        "Please choose the correct ending to complete the given sentence: Drums: A man\n\n"
        "Ending1: sits. Ending2: sings. Ending3: plays. Ending4: sleeps.\n\nAnswer format: ending1/ending2/ending3/ending4"
    )
    assert answer == "ending3"
    stand_in(monkeypatch, [row, row | {"label": ""}])
    table = read_part("hellaswag", "test")
    assert table is not None
    assert table.columns["answer"] == ["the correct answer is ending3", None]
