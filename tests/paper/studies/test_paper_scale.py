"""Every classifier study runs at paper scale, with tiny random models of the architectures that the paper names."""

import json
from pathlib import Path
from typing import Any

import pytest

from alloralib.data.registry import REGISTRY
from alloralib.training.models import load_tokenizer
from paper.catalogue import load
from paper.classify import RUN
from paper.run import run_study

from ...places import data_dir
from ...tiny import save_bert, save_llama, save_qwen2

ARCHITECTURES = {
    "Qwen/Qwen2-0.5B": ("qwen2", save_qwen2),
    "Snowflake/snowflake-arctic-embed-l": ("bert", save_bert),
    "Snowflake/snowflake-arctic-embed-xs": ("bert", save_bert),
    "HuggingFaceTB/SmolLM2-360M": ("llama", save_llama),  # OpenELM's code is not in transformers
}
COLUMNS = ("Qwen2 bios", "SmolLM2-360M rotten")
STAND_IN = {"bias_in_bios": "trec"}
"""For data sets that the tests' data directory does not have."""

TABLES = ("table6", "table7", "table2", "table4", "norm-free")
FEW = {"r": 2, "batch_size": 8, "max_length": 16, "train_rows": 12, "test_rows": 8}
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"seeds": 2} for name in TABLES},
    "table1": {"ranks": [1, 2], "seeds": 2},
    "fair": {"rates": [1e-4, 1e-2], "tuning_seeds": 1, "seeds": 2},
    "fig5": {"seeds": 2, "every": 1},
    "optimisers": {"seeds": 2, "every": 1},
    "eta": {"seeds": 2, "eta2": [0.25, 4]},
    "adaptors": {"seeds": 2},
    "memorisation": {"seeds": 2, "looks": [1, 2]},
}
"""The settings that are made small; all others are the paper's."""


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """One directory for all, so that tables find the tables they are made of."""
    return tmp_path_factory.mktemp("paper-scale")


def small(name: str, output: Path) -> dict[str, Any]:
    """The paper's settings with tiny models of the same architectures, few rows and short texts."""
    settings: dict[str, Any] = load(name).settings["paper"]
    changed = {"run": shrunk(settings["run"], output) | {k: v for k, v in FEW.items() if name != "table1" or k != "r"}}
    if "columns" in settings:
        changed["columns"] = {column: shrunk(settings["columns"][column], output) for column in COLUMNS}
    if "tasks" in settings:
        changed["tasks"] = {"rotten_tomatoes": settings["tasks"]["rotten_tomatoes"]}
        changed["run"]["validation_rows"] = 8
    return changed | SMALL[name]


def shrunk(run: dict[str, Any], output: Path) -> dict[str, Any]:
    made = dict(run)
    if "data" in run:
        made["data"] = STAND_IN.get(run["data"], run["data"])
    if "model" in run:
        kind, save = ARCHITECTURES[run["model"]]
        path = output / "models" / kind
        made["model"] = str(path) if path.is_dir() else save(path)
        assert json.loads((path / "config.json").read_text())["model_type"] == kind
    return made


def run_small(name: str, output: Path, out: str = "out") -> tuple[dict[str, Any], Path]:
    record = run_study(
        load(name), scale="paper", settings=small(name, output), data_dir=data_dir(), output_dir=output / out
    )  # fmt: skip
    return record, output / out / name


@pytest.mark.parametrize("name", SMALL)
def test_a_study_runs_at_paper_scale(name, output) -> None:
    study = load(name)
    record, path = run_small(name, output)
    assert record == json.loads((path / "record.json").read_text())
    assert record["scale"] == "paper"
    assert record["differs"] == study.differs["paper"]
    assert [f["claim"] for f in record["findings"]] == [c.name for c in study.claims]
    keys = [cell["key"] for cell in record["cells"]]
    planned = study.plan(record["settings"])
    assert keys[: len(planned)] == planned
    assert len(keys) == len(planned) + (16 if name == "fair" else 0)
    for cell in record["cells"]:
        assert 0 <= cell["result"]["accuracy"] <= 100
        assert cell["result"]["row_norm"] > 0  # something was trained
    assert (path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(data_dir()) not in (path / "record.json").read_text()
    assert not path.with_name(f"{name}.unfinished").exists()


def test_two_runs_give_the_same_record(output) -> None:
    _, first = run_small("adaptors", output)
    _, again = run_small("adaptors", output, "again")
    for file in ("record.json", "adaptors.png"):
        assert (first / file).read_bytes() == (again / file).read_bytes()


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_the_tiny_models_tokenizers_know_the_texts(model, output) -> None:
    """transformers chooses the tokenizer's class by architecture; one that maps every text to unknown tokens tests nothing."""
    tokenizer = load_tokenizer(shrunk({"model": model}, output)["model"])
    assert len(set(tokenizer("a film of some sense").input_ids)) > 8
    assert tokenizer.pad_token_id is not None


def parts_of(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a run of each column or task."""
    own = [*settings.get("columns", {}).values(), *settings.get("tasks", {}).values()] or [{}]
    return [settings["run"] | part for part in own]


@pytest.mark.parametrize("name", SMALL)
def test_the_settings_of_paper_scale_are_valid(name) -> None:
    study = load(name)
    settings = study.settings["paper"]
    assert set(study.needs(settings)) <= set(REGISTRY)
    for run in parts_of(settings):
        assert run["model"] in ARCHITECTURES
        assert REGISTRY[run["data"]].kind == "classification"
        assert set(run) <= {*RUN, "model", "data"}
    for optimiser in settings.get("optimisers", {}).values():
        assert set(optimiser) <= set(RUN)
    assert set(SMALL[name]) <= set(settings)


def test_the_classification_tables_are_those_of_the_paper() -> None:
    """Models, data sets, epochs, runs and l_b as in its section 4."""
    named = {
        "Qwen2": ("Qwen/Qwen2-0.5B", ["bias_in_bios", "emotion", "rotten_tomatoes"]),
        "Snowflake": ("Snowflake/snowflake-arctic-embed-l", ["emotion", "rotten_tomatoes", "yelp_review_full"]),
        "SmolLM2-360M": ("HuggingFaceTB/SmolLM2-360M", ["emotion", "rotten_tomatoes", "yelp_review_full"]),
    }
    for name in TABLES:
        settings = load(name).settings["paper"]
        for short, (model, sets) in named.items():
            columns = [value for column, value in settings["columns"].items() if column.split()[0] == short]
            assert [column["data"] for column in columns] == sets
            assert {column["model"] for column in columns} == {model}
        assert len(settings["columns"]) == 9
        assert settings["seeds"] == 5
        assert (settings["run"]["epochs"], settings["run"]["learning_rate"]) == (2, 1e-4)
        assert not {"train_rows", "test_rows"} & set(settings["run"])  # whole data sets
    one = load("table1").settings["paper"]
    assert one["ranks"] == [4, 8, 16, 32, 64]
    assert (one["run"]["model"], one["run"]["data"]) == ("Qwen/Qwen2-0.5B", "emotion")
    five = load("fig5").settings["paper"]["run"]
    assert (five["model"], five["data"]) == ("Snowflake/snowflake-arctic-embed-xs", "rotten_tomatoes")
