"""Records, metrics, the card and the curve: no torch among them."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloralib.errors import RecordError
from alloralib.evaluation.metrics import classification_metrics, perplexity, wilson_interval
from alloralib.records import RunRecord
from alloralib.reporting.card import card
from alloralib.reporting.curve import draw_loss


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


def test_what_json_has_no_word_for_becomes_null(tmp_path) -> None:
    record(metrics={"before": {}, "after": {"perplexity": math.inf}}).write(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["metrics"]["after"]["perplexity"] is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 3}', "nonsense"])
def test_what_is_no_record_is_refused(tmp_path, content: str) -> None:
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


def test_the_card_says_what_the_record_says() -> None:
    text = card(record())
    for fact in (
        "minilm-l6",
        "allora",
        "r = 4, eta = 2.0",
        "0.7500",
        "1,000 rows",
        "5,000",
        "no, yes",
        "num_labels=2",
        "3 rows left out",
        "step 4",
    ):
        assert fact in text, fact
    assert text.startswith("---\nbase_model: minilm-l6\n")


def test_the_curve_is_a_picture_and_a_function_of_the_record(tmp_path) -> None:
    draw_loss(record(), tmp_path / "a.png")
    draw_loss(record(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw_loss(record(history=record().history[:4]), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_interval_holds_the_proportion(n: int, share: float) -> None:
    correct = round(share * n)
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1 + 1e-12


def test_metrics_agree_with_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    ours = classification_metrics(predicted, truth, 6)
    assert ours["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert ours["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert ours["accuracy_low"] < ours["accuracy"] < ours["accuracy_high"]


def test_perplexity_overflows_to_infinity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e9) == math.inf


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
