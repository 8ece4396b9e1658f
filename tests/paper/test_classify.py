"""A classifier's run depends on its settings, the data and the seed alone, and does what the settings say."""

import json
import math

import pytest
import torch

from alloralib.errors import ConfigError
from alloralib.ops.family import METHODS
from alloralib.ops.scale import adaptor, paper_adaptor, scale
from paper import classify as module
from paper.cells import unpack
from paper.classify import DIVERGED, Run, classify, finite
from paper.data import StudyData

from ..places import data_dir
from ..tiny import save_bert

PLAIN_SGD = {
    "optimizer": "sgd", "learning_rate": 0.5, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "max_grad_norm": 1e9,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict:
    """A run of two epochs of three steps on 20 rows of TREC; the last batch is smaller."""
    return {
        "model": save_bert(tmp_path_factory.mktemp("classify") / "bert"), "data": "trec", "train_rows": 20, "test_rows": 24,
        "r": 2, "batch_size": 8, "epochs": 2, "max_length": 16, "learning_rate": 1e-2,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> StudyData:
    return StudyData(data_dir())


def parameters(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}


def trained(settings, data) -> dict[str, torch.Tensor]:
    """A, B and the head after training."""
    run = Run(settings, data)
    run.train(lambda run: None)
    return parameters(run)


def test_two_runs_give_the_same_result(tiny, data) -> None:
    settings = tiny | {"method": "lora", "dropout": 0.3}
    first = classify(settings, data)
    torch.rand(7)  # the state of the global generator does not matter
    assert classify(settings, data) == first
    assert set(first) == {"accuracy", "loss", "correct", "train_loss", "row_norm"}
    assert sum(unpack(first["correct"], 24)) / 24 == pytest.approx(first["accuracy"] / 100)
    assert json.loads(json.dumps(first)) == first
    assert classify(settings | {"seed": 1}, data) != first


def test_methods_of_a_seed_share_rows_order_and_start(tiny, data, monkeypatch) -> None:
    """This holds for all methods; another seed changes all three."""
    seen: list = []

    def noted(run, part, chosen, plain=Run._logits):
        if part == "train":
            seen.append([tuple(run.rows[part].examples[i]["input_ids"]) for i in chosen])
        return plain(run, part, chosen)

    monkeypatch.setattr(Run, "_logits", noted)

    def start_of(method, seed, watched):
        seen.clear()

        def watch(run):
            if run.step == 0:
                watched.append(parameters(run))

        classify(tiny | {"method": method, "seed": seed}, data, watch)
        return list(seen)

    methods = [method for method in METHODS if method != "pissa"]  # which takes A and B from the weight
    starts: list[dict] = []
    orders = [start_of(method, 0, starts) for method in methods]
    for method, order, start in zip(methods, orders, starts, strict=True):
        assert order == orders[0], method
        common = set(start) & set(starts[0])
        assert len(common) == len(starts[0])
        for name in common:
            assert torch.equal(start[name], starts[0][name]), (method, name)
    assert len(orders[0]) == 6
    other: list[dict] = []
    assert start_of("lora", 1, other) != orders[0]
    heads_and_As = [
        name for name in starts[0] if "lora_A" in name or name.endswith("classifier.modules_to_save.default.weight")
    ]
    assert len(heads_and_As) > 2
    assert not any(torch.equal(other[0][name], starts[0][name]) for name in heads_and_As)


def test_lora_times_one_is_lora(tiny, data) -> None:
    lora = classify(tiny | {"method": "lora"}, data)
    assert classify(tiny | {"method": "lora-x-eta", "eta": 1.0}, data) == lora
    assert classify(tiny | {"method": "lora-x-eta", "eta": 2.0}, data) != lora
    assert classify(tiny | {"method": "lora", "dropout": 0.0}, data) != lora  # the default is .05


def test_only_the_adapters_dropout_is_on_and_only_in_training(tiny, data, monkeypatch) -> None:
    active: dict[bool, set[str]] = {True: set(), False: set()}

    def noted(run, part, chosen, plain=Run._logits):
        on = {n for n, m in run.model.named_modules() if isinstance(m, torch.nn.Dropout) and m.training and m.p > 0}
        active[part == "train"] |= on
        return plain(run, part, chosen)

    monkeypatch.setattr(Run, "_logits", noted)

    def look(run):
        if run.step == 2:
            run.score("test")  # in the middle of the training

    for method in ("lora", "allora-d"):
        for found in active.values():
            found.clear()
        classify(tiny | {"method": method, "dropout": 0.3}, data, look)
        assert len(active[True]) == 7  # six linear layers of the block, one of the pooler
        assert all("lora_dropout" in name for name in active[True])
        assert not active[False]
    active[True].clear()
    classify(tiny | {"method": "allora"}, data)
    assert not active[True]
    own = [m.p for n, m in Run(tiny, data).model.named_modules() if isinstance(m, torch.nn.Dropout) and "lora" not in n]
    assert max(own) > 0  # so there was something to switch off


def test_scoring_during_training_changes_nothing(tiny, data) -> None:
    settings = tiny | {"method": "lora", "dropout": 0.3}
    assert classify(settings, data, lambda run: run.score("test") and None) == classify(settings, data)


class Poison(dict):
    """The parts of a run, one of which may not be read."""

    def __init__(self, rows, part) -> None:
        super().__init__(rows)
        self.part = part

    def __getitem__(self, part):
        if part == self.part:
            raise AssertionError(f"read the {part} rows")
        return super().__getitem__(part)


@pytest.mark.parametrize(("scored", "forbidden"), [("validation", "test"), ("test", "validation")])
def test_only_the_part_that_is_scored_is_read(tiny, data, monkeypatch, scored, forbidden) -> None:
    made = Run.__init__

    def poisoned(run, *args):
        made(run, *args)
        run.rows = Poison(run.rows, forbidden)

    monkeypatch.setattr(Run, "__init__", poisoned)
    settings = tiny | {"validation_rows": 16, "score": scored}
    found = classify(settings, data)
    assert len(found["correct"]) == {"validation": 16, "test": 24}[scored] // 4
    with pytest.raises(AssertionError, match=f"read the {forbidden} rows"):  # the guard works
        classify(settings | {"score": forbidden}, data)


def test_mimic_multiplies_the_rate_by_s(tiny, data) -> None:
    """From B = 0 the first step is eta times the plain one, and every later factor is smaller."""
    settings = tiny | {"method": "lora", "dropout": 0.0} | PLAIN_SGD
    rates: list[float] = []
    steps: list[dict] = []

    def run(**own):
        found = []
        classify(settings | own, data, lambda run: found.append(parameters(run)))
        return found

    plain, doubled = run(), run(mimic=2.0)
    for name, before in plain[0].items():
        torch.testing.assert_close(doubled[1][name] - before, 2 * (plain[1][name] - before), rtol=1e-4, atol=1e-6)

    class Noted(torch.optim.SGD):
        def step(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Noted)
        classify(settings | {"mimic": 2.0}, data, lambda run: steps.append({"s": run.mean_scale(2.0)}))
        assert rates == pytest.approx([0.5 * before["s"] for before in steps[:-1]])
        assert rates[0] == pytest.approx(1.0)
        assert all(0 < rate < 1 for rate in rates[1:])
        # factors do not accumulate: here with a schedule that decays
        rates.clear()
        steps.clear()
        falling = settings | {"mimic": 2.0, "schedule": "linear", "learning_rate": 0.05}
        classify(falling, data, lambda run: steps.append({"s": run.mean_scale(2.0)}))
        wanted = [0.05 * (1 - i / 6) * before["s"] for i, before in enumerate(steps[:-1])]
        assert rates == pytest.approx(wanted)


def test_the_seed_chooses_training_rows_but_not_held_out_rows(tiny, data) -> None:
    def rows(seed):
        run = Run(tiny | {"validation_rows": 16, "seed": seed}, data)
        return {part: [tuple(e["input_ids"]) for e in run.rows[part].examples] for part in ("train", "validation", "test")}

    first, same, other = rows(0), rows(0), rows(1)
    assert first == same
    assert [len(first[part]) for part in first] == [20, 16, 24]
    assert first["train"] != other["train"]
    assert first["validation"] == other["validation"]
    assert first["test"] == other["test"]


def test_classes_are_those_of_all_training_rows(tiny, data) -> None:
    run = Run(tiny | {"data": "banking77", "train_rows": 8}, data)
    assert len(run.names) == 77
    assert run.model.config.num_labels == 77
    assert int(run.rows["test"].labels.max()) > 8


def test_unknown_settings_are_refused(tiny, data) -> None:
    with pytest.raises(ConfigError, match="no setting 'learnin_rate'"):
        classify(tiny | {"learnin_rate": 1}, data)
    with pytest.raises(ConfigError, match="no optimizer 'lion'"):
        classify(tiny | {"optimizer": "lion"}, data)


def test_a_diverged_run_is_a_result(tiny, data) -> None:
    found = classify(tiny | PLAIN_SGD | {"method": "lora", "learning_rate": 1e18}, data)
    assert found["loss"] == found["train_loss"] == found["row_norm"] == DIVERGED
    assert json.dumps(found, allow_nan=False)
    assert [finite(v) for v in (1.5, math.nan, math.inf, -math.inf)] == [1.5, DIVERGED, DIVERGED, DIVERGED]


def constant(n: torch.Tensor, eta: float) -> torch.Tensor:
    return torch.full_like(n, eta)


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_another_adaptor_function_is_used_on_gradient_and_update(tiny, data, apply_to) -> None:
    settings = tiny | PLAIN_SGD | {"method": "allora", "apply_to": apply_to}
    lora = trained(tiny | PLAIN_SGD | {"method": "lora", "dropout": 0.0}, data)
    with adaptor(constant):
        untapered = trained(settings | {"eta": 1.0}, data)
        twice = trained(settings | {"eta": 2.0}, data)
    paper = trained(settings | {"eta": 1.0}, data)
    for name, wanted in lora.items():
        torch.testing.assert_close(untapered[name], wanted, rtol=1e-4, atol=1e-6)

    def apart(a):
        return max(float((a[name] - lora[name]).abs().max()) for name in lora if "lora_B" in name)

    assert apart(paper) > 1e-3  # tapering has an effect at these weights
    assert apart(twice) > 1e-3


def test_the_papers_function_is_restored_after_an_exception(tiny, data, monkeypatch) -> None:
    n = torch.tensor([0.0, 1.0, 3.0])

    def fails() -> None:
        assert scale(n, 2.0).tolist() == [2, 2, 2]
        with adaptor(lambda n, eta: 3 * constant(n, eta)):
            assert scale(n, 2.0).tolist() == [6, 6, 6]
        assert scale(n, 2.0).tolist() == [2, 2, 2]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), adaptor(constant):
        fails()
    torch.testing.assert_close(scale(n, 2.0), paper_adaptor(n, 2.0), rtol=0, atol=0)
    torch.testing.assert_close(scale(n, 2.0), 1 / (n + 0.25).sqrt())
    monkeypatch.setattr(module, "scale", lambda n, eta: n)  # a run's mean_scale uses the same function
    assert Run(tiny, data).mean_scale(2.0) == 0
