"""The registry's entries are complete and consistent, and importing it is cheap."""

import subprocess
import sys

import pytest

from alloralib.data.commonsense import FORMATTERS
from alloralib.data.forms import PARTS as PARTS_OF
from alloralib.data.forms import Columns
from alloralib.data.registry import PARTS, REGISTRY
from alloralib.training.config import RunConfig

PAPER = {"bias_in_bios", "emotion", "rotten_tomatoes", "yelp_review_full"}
COMMONSENSE = {"boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"}
HARNESS = {"sst2", "imdb", "toxigen", "snli", "medical_questions_pairs", "amazon_polarity", "banking77", "sms_spam"}


def test_the_sets_are_there() -> None:
    assert set(REGISTRY) == PAPER | COMMONSENSE | HARNESS | {"trec", "e2e_nlg"}
    assert set(FORMATTERS) == COMMONSENSE == {name for name, known in REGISTRY.items() if known.kind == "multiple-choice"}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_entry_is_well_formed(name: str) -> None:
    known = REGISTRY[name]
    assert known.name == name
    columns = known.columns.named()
    assert all(part == column for part, column in columns.items()), "rows come under the default names"
    assert known.columns == Columns.of(known.kind, columns)
    assert set(known.aliases) <= set(columns) <= set(PARTS_OF[known.kind])
    assert known.metric in {"classification": {"accuracy"}, "multiple-choice": {"accuracy"}}.get(known.kind, {"loss"})
    assert known.hub.id.count("/") == 1
    assert {"train"} <= set(known.hub.splits) <= set(PARTS)
    assert len(set(known.hub.splits.values())) == len(known.hub.splits), "no split is two parts"
    assert known.folders[0] == name
    assert known.about
    assert known.license
    if known.labels is not None:
        assert len(set(known.labels)) == len(known.labels) >= 2
        assert not any(label.isdigit() for label in known.labels), "digits are read as numbers of classes"


def test_number_of_classes() -> None:
    counts = {
        name: len(REGISTRY[name].labels or ()) for name in ("bias_in_bios", "emotion", "yelp_review_full", "snli", "trec")
    }
    assert counts == {"bias_in_bios": 28, "emotion": 6, "yelp_review_full": 5, "snli": 3, "trec": 6}


@pytest.mark.parametrize("name", ["snli", "boolq", "e2e_nlg"])
def test_a_run_takes_task_and_columns_from_its_set(name: str) -> None:
    config = RunConfig.of({"model": "m", "data": name, "output_dir": "o"})
    assert config.kind == REGISTRY[name].kind
    assert config.columns == REGISTRY[name].columns


def test_the_registry_imports_nothing_heavy() -> None:
    heavy = "torch", "transformers", "datasets", "trl", "numpy", "pyarrow"
    code = f"import sys, alloralib.data.registry; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
