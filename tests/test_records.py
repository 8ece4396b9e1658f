"""Records, and what may not import torch."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from alloralib.errors import RecordError
from alloralib.records import RunRecord


def record(**changes) -> RunRecord:
    values = {
        "config": {"task": "classification", "model": "minilm-l6"},
        "command": "allora train --task classification",
        "versions": {"torch": "2"},
        "machine": {"threads": 2},
        "model": {"name": "minilm-l6", "parameters": 10, "class": "Bert"},
        "data": {
            "train": {"source": "a.csv", "sha256": "ab", "rows": 100},
            "validation": {"source": "a.csv", "sha256": "ab", "rows": 200},
            "test": {"source": "a.csv", "sha256": "ab", "rows": 1000},
            "removed": {"train": 2, "train/test": 1},
            "labels": ["no", "yes"],
            "majority": 0.5,
        },
        "adapter": {"method": "allora", "r": 4, "eta": 2.0, "modules": 2, "trained_parameters": 5000},
        "preflight": {"data": {}, "cost": {}, "warnings": []},
        "metrics": {"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75}},
        "history": [{"step": i, "loss": 1 / i, "learning_rate": 0.1, "tokens": i} for i in range(1, 9)],
        "validation": {"history": [{"step": 4, "loss": 0.3}, {"step": 8, "loss": 0.4}], "best_step": 4},
        "rule": [],
        "seconds": {"train": 1.0},
    }
    return RunRecord(**(values | changes))


def test_round_trip(tmp_path) -> None:
    record().write(tmp_path / "record.json")
    assert RunRecord.read(tmp_path / "record.json") == record()


def test_infinity_becomes_null(tmp_path) -> None:
    record(metrics={"before": {}, "after": {"perplexity": math.inf}}).write(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["metrics"]["after"]["perplexity"] is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 3}', "nonsense"])
def test_other_files_are_refused(tmp_path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(RecordError, match=r"r\.json"):
        RunRecord.read(tmp_path / "r.json")
    with pytest.raises(RecordError):
        RunRecord.read(tmp_path / "absent.json")


def test_an_unknown_entry_is_refused(tmp_path) -> None:
    content = dataclasses.asdict(record()) | {"surprise": 1}
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match="surprise"):
        RunRecord.read(tmp_path / "r.json")


def imported(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


LIGHT = {
    "import alloralib": "import alloralib",
    "allora --help": "from alloralib.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    "allora train --help": "from alloralib.cli.main import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
    "a record": "import alloralib.records, alloralib.errors",
    "a card": "import alloralib.reporting.card, alloralib.reporting.curve",
    "RunConfig": "from alloralib import RunConfig",
}


@pytest.mark.parametrize("name", LIGHT)
def test_torch_is_not_imported_by(name: str) -> None:
    assert "torch" not in imported(LIGHT[name])


def test_the_test_above_can_fail() -> None:
    assert "torch" in imported("import alloralib\nalloralib.AlloraConfig")


def test_alloralib_registers_with_a_peft_that_is_there_already() -> None:
    assert "alloralib.adapters.peft_hooks" in imported("import peft\nimport alloralib")


def test_the_public_names_exist() -> None:
    import alloralib

    for name in alloralib.__all__:
        assert getattr(alloralib, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'AlloraConfg'"):
        alloralib.AlloraConfg  # noqa: B018
