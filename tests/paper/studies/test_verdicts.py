"""The verdicts of the classifier studies on made-up cells with known differences; nothing is trained."""

import random
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest

from alloralib.comparison.statistics import compare, holm, interval
from paper import perception
from paper.catalogue import load
from paper.cells import Cell, Settings
from paper.data import StudyData
from paper.perception import ETA2, METHODS, everywhere, knobs
from paper.run import findings_of
from paper.studies import fair, table1

COLUMNS = {"columns": {"a": {}, "b": {}, "c": {}}, "run": {}, "seeds": 5}


def jitter(key: dict[str, Any], arm: str) -> float:
    """A small number that depends on arm and seed: without any spread no test finds a difference."""
    return random.Random(f"{key[arm]} {key['seed']}").uniform(-0.2, 0.2)


def table_cells(gain: Callable[[str, str, int], float], names=("table6", "table7", "norm-free")) -> list[Cell]:
    """Cells of the text-classification tables; within a column and seed, accuracies differ only by the method's gain."""
    cells = []
    for name in names:
        for key in load(name).plan(COLUMNS):
            gained = gain(key["method"], key["column"], key["eta2"]) + jitter(key, "method")
            score = 60 + 5 * ord(key["column"]) % 20 + 2 * key["eta2"] + 3 * key["seed"] + gained
            cells.append(Cell(key, {"accuracy": score, "loss": 2 - score / 100 - key["seed"]}))
    return cells


def findings(name: str, cells: list[Cell], settings: Settings = COLUMNS) -> dict[str, dict[str, Any]]:
    return {found["claim"]: found for found in findings_of(load(name), cells, settings)}


def verdicts(name: str, cells: list[Cell], settings: Settings = COLUMNS) -> dict[str, str]:
    return {claim: found["verdict"] for claim, found in findings(name, cells, settings).items()}


def by_hand(cells: list[Cell], a: str, b: str, etas=ETA2, of="accuracy") -> list[float]:
    """a - b, the mean over the table, per seed, computed without `perception`."""
    found = {(c.key["method"], c.key["column"], c.key["eta2"], c.key["seed"]): c.result[of] for c in cells}
    found |= {("LoRA x eta", c, 1, s): v for (m, c, e, s), v in list(found.items()) if m == "LoRA" and e == 1}
    return [
        fmean(found[a, c, e, s] - found[b, c, e, s] for c in COLUMNS["columns"] for e in etas) for s in range(COLUMNS["seeds"])
    ]


def test_better_in_every_cell_is_confirmed() -> None:
    cells = table_cells(lambda method, column, eta2: 5 / eta2 if method == "ALLoRA" else 0)
    assert set(verdicts("table6", cells).values()) == {"confirmed"}
    assert verdicts("table2", cells) == dict.fromkeys(("left-1", "left-2", "left-4", "right"), "confirmed")
    assert set(verdicts("table4", cells).values()) == {"confirmed"}
    assert set(verdicts("table7", cells).values()) == {"confirmed"}
    free = verdicts("norm-free", cells)
    assert free.pop("without") == "inconclusive"  # ALLoRA being better says nothing about dropout
    assert free.pop("cancels") == "not confirmed"  # it is ahead of LoRA without dropout at l_b by more than a point
    assert free == dict.fromkeys(("rule", "rule-everywhere", "loss"), "confirmed")
    level = table_cells(lambda method, column, eta2: -2 * eta2)  # the same at every eta
    assert verdicts("norm-free", level)["cancels"] == "confirmed"


def test_worse_is_not_confirmed() -> None:
    cells = table_cells(lambda method, column, eta2: -5 / eta2 if method == "ALLoRA" else 0)
    assert set(verdicts("table6", cells).values()) == {"not confirmed"}
    assert set(verdicts("table7", cells).values()) == {"not confirmed"}
    assert set(verdicts("table4", cells).values()) == {"not confirmed"}
    assert verdicts("norm-free", cells)["rule-everywhere"] == "not confirmed"


def test_one_significantly_worse_cell_refutes_everywhere() -> None:
    def gain(method, column, eta2):
        return 0 if method != "ALLoRA" else -2 if (column, eta2) == ("b", 2) else 3

    found = findings("table6", table_cells(gain))
    assert found["mean"]["verdict"] == "confirmed"
    assert found["everywhere"]["verdict"] == "not confirmed"
    assert found["everywhere"]["ours"] == "8 wins, 0 ties, 1 losses of 9; beyond chance: 8 better, 1 worse"
    assert (found["everywhere"]["low"], found["everywhere"]["high"]) == pytest.approx((-2, 3), abs=0.5)


def test_equal_methods_give_no_verdict() -> None:
    noisy = table_cells(lambda method, column, eta2: 0)
    assert verdicts("table6", noisy)["everywhere"] == "inconclusive"
    same = [Cell(c.key, c.result | {"accuracy": 70.0, "loss": 1.0}) for c in noisy]
    assert verdicts("table6", same) == {
        "mean": "not confirmed", "everywhere": "inconclusive", "falls": "not confirmed", "loss": "not confirmed",
    }  # fmt: skip


def spread(mean: float) -> list[float]:
    return [mean + v for v in (-1, -0.5, 0, 0.5, 1)]


def test_many_cells_are_corrected_for_and_the_guard_works(monkeypatch) -> None:
    values = spread(1.14)
    p = compare(values, [0.0] * 5).p
    assert 0.02 < p < 0.05 / 1.2  # significant alone, but not as one of nine
    assert max(holm([p] * 9)) > 0.15
    assert everywhere({"one": values}).verdict == "confirmed"
    assert everywhere({"small": [v / 100 + 0.3 for v in values]}).verdict == "confirmed"
    assert everywhere(dict(enumerate([values] * 9))).verdict == "inconclusive"
    mixed = [*[[v + 50 for v in values]] * 8, [-v for v in values]]  # the last p is compared with .05 itself
    assert everywhere(dict(enumerate(mixed))).verdict == "not confirmed"
    losses = dict(enumerate([[v + 50 for v in values], *[[-v for v in values]] * 2]))
    assert everywhere(losses).verdict == "inconclusive"
    monkeypatch.setattr(perception, "holm", list)  # the mutation
    assert everywhere(dict(enumerate([values] * 9))).verdict == "confirmed"
    assert everywhere(losses).verdict == "not confirmed"


def assert_is_the_gap(found: dict[str, Any], values: list[float]) -> None:
    assert (found["low"], found["high"]) == pytest.approx(interval(values), rel=1e-5)


def test_the_tables_of_differences_are_differences_of_the_other_tables() -> None:
    names = list(METHODS)
    cells = table_cells(lambda method, column, eta2: 0.7 * names.index(method) + 0.3 * eta2 * (method == "ALLoRA"))
    ours = "ALLoRA"
    two = findings("table2", cells)
    for eta2 in ETA2:
        assert_is_the_gap(two[f"left-{eta2}"], by_hand(cells, ours, "LoRA", [eta2]))
    assert_is_the_gap(two["right"], by_hand(cells, ours, "ALLoRA+D"))
    six = findings("table6", cells)
    falls = zip(by_hand(cells, ours, "LoRA", [1]), by_hand(cells, ours, "LoRA", [4]), strict=True)
    assert_is_the_gap(six["falls"], [a - b for a, b in falls])
    assert_is_the_gap(six["loss"], by_hand(cells, ours, "LoRA", of="loss"))
    for claim, found in findings("table4", cells).items():
        assert_is_the_gap(found, by_hand(cells, ours, claim))
    assert not [c for c in cells if c.key["method"] == "LoRA x eta" and c.key["eta2"] == 1]  # it is taken from LoRA
    moved = [
        Cell(c.key, c.result | {"accuracy": c.result["accuracy"] + 9 * ((c.key["method"], c.key["eta2"]) == ("LoRA", 1))})
        for c in cells
    ]
    four = findings("table4", moved)
    assert four["LoRA x eta"]["low"] == pytest.approx(interval(by_hand(cells, ours, "LoRA x eta"))[0] - 3, rel=1e-5)
    control = "LoRA without dropout"
    free = findings("norm-free", cells)
    for claim, (a, b, of) in {
        "without": (control, "LoRA", "accuracy"), "rule": (ours, control, "accuracy"), "loss": (ours, control, "loss"),
    }.items():  # fmt: skip
        assert_is_the_gap(free[claim], by_hand(cells, a, b, of=of))


@pytest.mark.parametrize(("gain", "said"), [(4, "confirmed"), (-4, "not confirmed")])
def test_table1(gain, said) -> None:
    settings = {"ranks": [4, 16], "seeds": 5, "run": {}}
    cells = [
        Cell(key, {"accuracy": 60 + 2 * key["seed"] + jitter(key, "method") + (key["method"] == "ALLoRA") * gain})
        for key in table1.STUDY.plan(settings)
    ]
    found = verdicts("table1", cells, settings)
    assert {found[f"{kind}-{other}"] for kind in ("mean", "every") for other in ("LoRA", "DoRA")} == {said}
    risen = [Cell(c.key, {"accuracy": c.result["accuracy"] + gain * c.key["rank"]}) for c in cells]
    assert verdicts("table1", risen, settings)["rises"] == said


def test_a_method_without_an_eta_learns_at_eta_times_the_rate() -> None:
    assert knobs("LoRA", 4, 1e-4) == {"method": "lora", "learning_rate": 2e-4}
    assert knobs("LoRA x eta", 4, 1e-4) == {"method": "lora-x-eta", "eta": 2.0}
    assert knobs("LoRA without dropout", 1, 1e-4) == {"method": "lora", "dropout": 0.0, "learning_rate": 1e-4}


FAIR: Settings = {
    "tasks": {"x": {"data": "trec"}, "y": {"data": "emotion"}}, "rates": [1e-4, 1e-3, 1e-2, 1e-1], "tuning_seeds": 2,
    "seeds": 5, "run": {"model": "tiny"},
}  # fmt: skip


def tuned(best: Callable[[str, str], float]) -> list[Cell]:
    """Tuning cells in which the best rate of each task and method is known."""
    return [
        Cell(key, {"accuracy": 70.0 - 10 * (key["rate"] != best(key["task"], key["method"])) + key["seed"], "loss": 1.0})
        for key in fair.plan(FAIR)
    ]


def followed(cells: list[Cell], gain: Callable[[dict[str, Any]], float]) -> list[Cell]:
    return [
        Cell(key, {"accuracy": 60 + 2 * key["seed"] + jitter(key, "method") + gain(key), "loss": 1.0})
        for key in fair.follow(cells, FAIR)
    ]


def test_a_rate_is_chosen_on_validation_rows_and_the_guard_works(monkeypatch) -> None:
    cells = tuned(lambda task, method: 1e-3 if task == "x" else 1e-2)
    keys = fair.follow(cells, FAIR)
    assert {(k["task"], k["rate"]) for k in keys} == {("x", 1e-3), ("y", 1e-2)}
    assert {k["seed"] for k in keys} == {2, 3, 4, 5, 6}  # none of the tuning seeds
    assert {k["for"] for k in keys} == {"test"}
    assert {c.key["seed"] for c in cells} == {0, 1}
    tempting = [Cell({"task": "x", "method": "LoRA", "rate": 1e-1, "seed": 2, "for": "test"}, {"accuracy": 1e4, "loss": 0.0})]
    assert fair.chosen_rate(cells + tempting, FAIR, "x", "LoRA") == 1e-3
    tied = [Cell(c.key, {"accuracy": 50.0, "loss": abs(c.key["rate"] - 1e-2) + c.key["seed"]}) for c in cells]
    assert fair.chosen_rate(tied + tempting, FAIR, "x", "LoRA") == 1e-2
    plain = fair.values

    def without_part(cells, entry, **wanted):
        return plain(cells, entry, **{k: v for k, v in wanted.items() if k != "for"})

    monkeypatch.setattr(fair, "values", without_part)  # the mutation
    assert fair.chosen_rate(cells + tempting, FAIR, "x", "LoRA") == 1e-1


def test_tuning_is_scored_on_validation_rows(monkeypatch) -> None:
    monkeypatch.setattr(fair, "classify", lambda run, data: run)
    for key in [*fair.plan(FAIR), *fair.follow(tuned(lambda task, method: 1e-3), FAIR)]:
        run = fair.work(key, FAIR, StudyData(None))
        assert run["score"] == {"tuning": "validation", "test": "test"}[key["for"]]
        assert (run["learning_rate"], run["seed"], run["model"]) == (key["rate"], key["seed"], "tiny")
        assert run["data"] == FAIR["tasks"][key["task"]]["data"]


@pytest.mark.parametrize(("gain", "said"), [(3, "confirmed"), (-3, "not confirmed"), (0.0, "inconclusive")])
def test_fair_verdicts(gain, said) -> None:
    tuning = tuned(lambda task, method: 1e-3)
    found = verdicts("fair", tuning + followed(tuning, lambda key: gain * (key["method"] == "ALLoRA")), FAIR)
    assert {found[other] for other in fair.OTHERS} == {said}
    assert found["spread"] == ("not confirmed" if gain else "confirmed")
    assert found["interior"] == "confirmed"


def test_fair_is_corrected_for_many_methods_and_the_guard_works(monkeypatch) -> None:
    tuning = tuned(lambda task, method: 1e-3)
    gaps = spread(1.14)
    cells = [
        Cell(c.key, {"accuracy": 60 + gaps[c.key["seed"] - 2] * (c.key["method"] == "ALLoRA"), "loss": 1.0})
        for c in followed(tuning, lambda key: 0)
    ]
    assert {verdicts("fair", tuning + cells, FAIR)[other] for other in fair.OTHERS} == {"inconclusive"}
    monkeypatch.setattr(fair, "holm", list)  # the mutation
    assert {verdicts("fair", tuning + cells, FAIR)[other] for other in fair.OTHERS} == {"confirmed"}


def test_rates_at_an_end_are_counted() -> None:
    ends = {("x", "LoRA"): 1e-4, ("y", "LoRA"): 1e-1, ("y", "DoRA"): 1e-4}
    tuning = tuned(lambda task, method: ends.get((task, method), 1e-3))
    found = findings("fair", tuning + followed(tuning, lambda key: 0), FAIR)
    assert found["interior"]["low"] == found["interior"]["high"] == 3
    assert found["interior"]["verdict"] == "not confirmed"


def norms(key: dict[str, Any], fits: bool) -> dict[str, Any]:
    """Figure 5: as fast as LoRA at eta l_b and then slower; or twice as fast, and faster still."""
    path = [0.0, 1.0, 4.0]
    if key["arm"].startswith("ALLoRA"):
        path = [0.0, 1.0, 2.0] if fits else [0.0, 2.0, 10.0]
    return {"norms": [v * (1 + 0.1 * jitter(key, "arm")) ** i for i, v in enumerate(path)]}


def optimised(key: dict[str, Any], fits: bool) -> dict[str, Any]:
    """The rule on the gradient cancels under an adaptive optimiser, else eta doubles the first steps; or the other way."""
    cancels = key["arm"] == "gradient" and key["optimiser"] in ("adamw", "adafactor")
    ratio = 1.0 if key["arm"] == "LoRA" or cancels == fits else 2.0
    gain = 0 if key["arm"] == "LoRA" else 4 if fits else -4
    return {
        "norms": [0.0, ratio + 0.1 * jitter(key, "arm")],
        "accuracy": 70 + key["seed"] + jitter(key, "arm") + gain,
        "train_loss": (0.5 if fits else 3.0) + 0.1 * jitter(key, "arm"),
    }


def sensitive(key: dict[str, Any], fits: bool) -> dict[str, Any]:
    """Accuracy by eta squared: level, and falling steeply; at the largest LoRA is behind, or ahead."""
    slope = 0.005 if fits else 0.5
    ahead = {"update": 1, "LoRA": -1}.get(key["arm"], 0) * (0.5 if fits else -0.5)
    return {"accuracy": 70 - slope * key["eta2"] + ahead + 0.1 * jitter(key, "arm")}


def adapted(key: dict[str, Any], fits: bool) -> dict[str, Any]:
    other = key["adaptor"] != load("adaptors").plan({"seeds": 1})[0]["adaptor"]
    return {"accuracy": 70 + key["seed"] + jitter(key, "adaptor") + other * (3 if fits else -3)}


def memorised(key: dict[str, Any], fits: bool) -> dict[str, Any]:
    control = key["arm"] == "LoRA without dropout"
    test = [1.0, 2.0] if fits else [2.0, 1.0]
    last = test[1] if control else 1.5
    return {"training_loss": [0.9, 0.01 if fits else 0.5], "test_loss": [test[0], last + 0.1 * jitter(key, "arm")]}


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize(
    ("name", "result"),
    [("fig5", norms), ("optimisers", optimised), ("eta", sensitive), ("adaptors", adapted), ("memorisation", memorised)],
)
def test_verdicts_on_made_up_curves(name, result, fits) -> None:
    study = load(name)
    settings = study.settings["laptop"]
    cells = [Cell(key, result(key, fits)) for key in study.plan(settings)]
    found = verdicts(name, cells, settings)
    assert set(found.values()) == {"confirmed" if fits else "not confirmed"}, found
