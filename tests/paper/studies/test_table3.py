"""Table 3 at both scales with a tiny Llama, its verdicts on made-up cells, and eta is chosen without the test questions."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch

from alloralib.data.duplicates import normalized
from paper.cells import Cell
from paper.commonsense import METHODS, Row, answer_losses, load_tasks, tune
from paper.data import StudyData
from paper.printed import TABLE3_AVERAGES
from paper.run import findings_of, run_study
from paper.studies import table3

from ...adapters.models import llama
from ...places import data_dir
from ...tiny import save, word_level

STUDY = table3.STUDY
FORMATS = {
    "boolq": "true/false", "piqa": "solution1/solution2", "social_i_qa": "answer1/answer2/answer3",
    "hellaswag": "ending1/ending2/ending3/ending4", "winogrande": "option1/option2",
    "arc_easy": "answer1/answer2/answer3/answer4", "arc_challenge": "answer1/answer2/answer3/answer4",
    "openbookqa": "answer1/answer2/answer3/answer4",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    """A directory of tiny files of all eight tasks, and the settings of a run on them with a tiny Llama."""
    root = tmp_path_factory.mktemp("table3")
    rng = random.Random(0)
    for task, form in FORMATS.items():
        (root / "data" / task).mkdir(parents=True)
        for part, count in (("train", 24), ("test", 3)):
            rows = []
            for i in range(count):
                answer = rng.choice(form.split("/"))
                text = f"Please answer: {task} {part} {i} {answer}?\n\nAnswer format: {form}"
                rows.append({"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer})
            (root / "data" / task / f"{part}.json").write_text(json.dumps(rows))
    words = ["the", "correct", "answer", "is", "Please", "Response", ":", "?", "/", "."]
    words += sorted({name for form in FORMATS.values() for name in form.split("/")})
    model = llama()
    model.generation_config.eos_token_id = 1
    models = {"tiny": {"name": save(root / "model", model, word_level(words)), "learning_rate": 1e-2}}
    return {"data": root / "data", "settings": {"models": models, "validation_share": 0.1, "dtype": "float32", "seeds": 2}}


def test_table3_runs_at_paper_scale(small, tmp_path) -> None:
    settings = small["settings"] | {"epochs": 1, "ranks": [2], "eta2": [1, 4], "warmup": 2, "new_tokens": 7}
    record = run_study(STUDY, scale="paper", data_dir=small["data"], output_dir=tmp_path, settings=settings)
    assert len(record["cells"]) == 2 * (2 + 2 * 2)
    assert record["settings"]["tasks"] == list(FORMATS)
    assert set(record["data"]) == set(FORMATS)
    for cell in record["cells"]:
        result = cell["result"]
        assert result["updates"] == -(-result["rows"] // 16)
        assert set(result["correct"]) == set(FORMATS)
        assert all(len(right) == 3 and set(right) <= {0, 1} for right in result["correct"].values())
    assert (tmp_path / "table3" / "table3.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_give_the_same_record(small, tmp_path) -> None:
    settings = small["settings"] | {"updates": 2, "train_rows": 6, "ranks": [2], "eta2": [2], "tasks": ["boolq", "arc_easy"]}
    for output in ("a", "b"):
        run_study(STUDY, data_dir=small["data"], output_dir=tmp_path / output, settings=settings)
    for file in ("record.json", "table3.png"):
        assert (tmp_path / "a/table3" / file).read_bytes() == (tmp_path / "b/table3" / file).read_bytes()


def test_the_laptop_plan_is_within_its_budget() -> None:
    assert len(STUDY.plan(STUDY.settings["laptop"])) <= 48


def test_training_rows_are_no_questions_and_all_seeds_have_the_same_questions() -> None:
    settings, data = STUDY.settings["laptop"], StudyData(data_dir())
    a, b = load_tasks(settings, data, 0), load_tasks(settings, data, 1)
    trained = {normalized(q.prompt) for rows in a.values() for q in rows.train}
    asked = {normalized(q.prompt) for rows in a.values() for q in (*rows.validation, *rows.test)}
    assert len(asked) == sum(len(rows.validation) + len(rows.test) for rows in a.values())
    assert not trained & asked
    for name, rows in a.items():
        assert (rows.validation, rows.test) == (b[name].validation, b[name].test)
        assert rows.train != b[name].train


def test_padding_does_not_change_a_loss() -> None:
    model = llama()
    rows = [Row([5, 6, 7, 8, 9, 10, 1], 3), Row([11, 12, 1], 2), Row([4, 3, 2, 1], 1)]
    together, counts = answer_losses(model, rows)
    assert counts.tolist() == [3, 2, 1]
    for row, found in zip(rows, together, strict=True):
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        places = range(len(row.ids) - row.learned, len(row.ids))
        expected = -sum(logits[p - 1, row.ids[p]] for p in places)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_methods_see_the_same_rows_in_the_same_order(monkeypatch) -> None:
    seen = []

    def watched(model, rows):
        seen.append([row.ids for row in rows])
        return answer_losses(model, rows)

    monkeypatch.setattr("paper.commonsense.answer_losses", watched)
    rows = [Row([3 + i, 4, 5, 1], 2) for i in range(10)]
    settings = {"batch": 4, "updates": 4, "epochs": 1, "schedule": "constant", "warmup": 0}
    for seed, dropout in ((0, 0.0), (0, 0.3), (1, 0.0)):
        model = llama()
        model.config.attention_dropout = dropout
        tune(model, rows, settings, 1e-3, seed)
    assert seen[:4] == seen[4:8] != seen[8:]


def drawn(cells, settings, monkeypatch) -> list[list[str]]:
    """The rows of the picture's table."""
    from matplotlib.axes import Axes

    tables = []
    plain = Axes.table
    with monkeypatch.context() as patch:
        patch.setattr(table3, "save", lambda figure, path: None)
        patch.setattr(Axes, "table", lambda ax, rows, **how: tables.append(rows) or plain(ax, rows, **how))
        table3.draw(cells, settings, Path("unused.png"))
    return tables[0]


def made_up(gain: dict[str, float], seed: int = 0) -> tuple[list[Cell], dict]:
    """Cells whose methods answer a share of 200 questions per task right, the loss falling as the share rises."""
    settings = STUDY.settings["laptop"]
    rng = random.Random(seed)
    cells = []
    difficulty = {(t, s): [rng.random() for _ in range(200)] for t in settings["tasks"] for s in range(settings["seeds"])}
    for key in STUDY.plan(settings):
        share = 0.4 + gain.get(key["method"], 0.0)
        bits = {t: [d < share for d in difficulty[t, key["seed"]]] for t in settings["tasks"]}
        cells.append(Cell(key, {
            "validation_loss": 1.0 + 0.1 * abs(key.get("eta2", 2) - 2), "named": {},
            "loss": dict.fromkeys(settings["tasks"], 1 - share + 0.001 * key["seed"]),
            "correct": {t: list(map(int, b)) for t, b in bits.items()},
            "frequent": {t: [int(d < 0.25) for d in difficulty[t, key["seed"]]] for t in settings["tasks"]},
        }))  # fmt: skip
    return cells, settings


def findings(cells, settings) -> dict[str, dict]:
    return {found["claim"]: found for found in findings_of(STUDY, cells, settings)}


def verdicts(cells, settings) -> dict[str, str]:
    return {claim: found["verdict"] for claim, found in findings(cells, settings).items()}


def test_a_method_that_is_better_is_confirmed_and_an_equal_one_is_not() -> None:
    better = verdicts(*made_up({"ALLoRA": 0.2, "ALLoRA+D": 0.2}))
    for claim in ("over-dora", "d-over-dora", "no-dropout", "best-on-test", "over-lora", "loss-over-dora", "chance"):
        assert better[claim] == "confirmed", claim
    same = verdicts(*made_up({}))
    for claim in ("over-dora", "d-over-dora", "best-on-test", "over-lora", "loss-over-dora", "loss-over-lora", "selection"):
        assert same[claim] == "not confirmed", claim
    worse = verdicts(*made_up({"ALLoRA": -0.2}))
    for claim in ("over-dora", "no-dropout", "loss-over-dora"):
        assert worse[claim] == "not confirmed", claim
    assert worse["d-over-dora"] == "not confirmed"


def choices(cells, settings) -> list[int]:
    """The chosen eta, by rank and seed."""
    return [
        table3.chosen(cells, method="ALLoRA", r=r, seed=s).key["eta2"]
        for r in settings["ranks"] for s in range(settings["seeds"])
    ]  # fmt: skip


def scrambled(cells: list[Cell], best: int) -> list[Cell]:
    """The same runs with all test questions right for one eta, and all wrong for the others."""
    made = []
    for cell in cells:
        result = copy.deepcopy(cell.result)
        for name, right in result["correct"].items():
            result["correct"][name] = [int(cell.key.get("eta2") == best)] * len(right)
        result["loss"] = {name: float(cell.key.get("eta2") != best) for name in result["loss"]}
        made.append(Cell(cell.key, result))
    return made


def blind(cells, settings) -> bool:
    """Whether the choice of eta is the same for any answers to the test questions."""
    return all(choices(scrambled(cells, best), settings) == choices(cells, settings) for best in settings["eta2"])


def test_eta_is_chosen_on_validation_rows_and_the_guard_works(monkeypatch) -> None:
    cells, settings = made_up({})
    assert choices(cells, settings) == [2] * 6
    assert blind(cells, settings)
    found = findings(scrambled(cells, 4), settings)
    assert found["over-dora"]["low"] == 0  # eta2 = 2 was taken, and has nothing right
    assert found["best-on-test"]["low"] == 100
    assert found["selection"]["verdict"] == "confirmed"
    shown = drawn(scrambled(cells, 4), settings, monkeypatch)
    ours = [row for row in shown if row[2] == "ALLoRA"]
    assert [(row[3], row[-1]) for row in ours] == [("0.0", "100.0")] * 2  # the picture too
    monkeypatch.setattr(table3, "by_validation", table3.by_test)  # the mutation
    assert not blind(cells, settings)
    assert findings(scrambled(cells, 4), settings)["over-dora"]["low"] == 100


def test_tasks_of_different_size_count_alike() -> None:
    weighted = table3.weighted({"a": [1] * 10, "b": [0] * 30})
    assert float(weighted.mean()) == pytest.approx(50)


def test_the_printed_gain_agrees_with_the_printed_averages() -> None:
    gaps = [row[2] - row[0] for row in TABLE3_AVERAGES.values()]
    assert pytest.approx(sum(gaps) / len(gaps), abs=0.05) == table3.OVER_DORA
    assert round(table3.OVER_DORA, 1) == 0.3


def test_the_picture(tmp_path) -> None:
    cells, settings = made_up({"ALLoRA": 0.1})
    table3.draw(cells, settings, tmp_path / "a.png")
    assert 5_000 < (tmp_path / "a.png").stat().st_size < 200_000
    assert set(METHODS) == {c.key["method"] for c in cells}
