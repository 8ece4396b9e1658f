"""The studies without classifiers run at a tiny size on real data, and the functions their verdicts depend on are right."""

import pytest
import torch
from transformers import AutoTokenizer

from paper.catalogue import load
from paper.data import StudyData
from paper.dropout_theory import expected_loss
from paper.run import run_study
from paper.studies.fig1 import problem
from paper.studies.fig4 import exact_loss, mean_loss

from ...places import data_dir
from ...tiny import save_qwen2
from ..test_mlp import small_net

SMALL = {"sizes": [784, 16, 16, 10], "rank": 2, "pretrain_rows": 128, "pretrain_epochs": 1, "rows": 64}
TINY = {
    "fig1": {"rows": 24, "rank": 2, "repeats": 2, "rates": [0.05, 0.5], "realisations": [1, 10, 300]},
    "fig2": {"rows": 160, "masks": 4, "seeds": 2, "epochs": 2, "hidden": [16, 16]},
    "fig3": SMALL | {"rates": [0.0, 0.5], "seeds": 2, "steps": 6, "every": 3},
    "fig4": SMALL | {"rates": [0.1, 0.5], "seeds": 2, "steps": 6, "last_layer_steps": 6, "masks": 3,
             "every": 2, "test_rows": 50},
    "fig6": {"points": 11},
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_two_runs_give_the_same_record(name, tmp_path) -> None:
    study = load(name)
    for output in ("a", "b"):
        record = run_study(study, data_dir=data_dir(), output_dir=tmp_path / output, settings=TINY[name])
        assert [f["claim"] for f in record["findings"]] == [c.name for c in study.claims]
    for file in ("record.json", f"{name}.png"):
        assert (tmp_path / "a" / name / file).read_bytes() == (tmp_path / "b" / name / file).read_bytes()
    assert str(data_dir()) not in (tmp_path / "a" / name / "record.json").read_text()


def test_table5_at_paper_scale_with_a_tiny_qwen2(tmp_path) -> None:
    """The paper's architecture, optimizer and schedule; only model and data are small."""
    study = load("table5")
    model = save_qwen2(tmp_path / "qwen2")
    ids = AutoTokenizer.from_pretrained(model)("a film of some sense").input_ids  # as a run tokenizes them
    assert len(set(ids)) > 8
    small = {"model": model, "data": "rotten_tomatoes", "train_rows": 32, "validation_share": 0.1}
    run = study.settings["paper"]["run"] | small | {"validation_rows": 16, "max_length": 16}
    settings = {"rates": [0.0, 0.4], "epochs": 2, "early": 1, "seeds": 2, "run": run}
    record = run_study(study, scale="paper", data_dir=data_dir(), output_dir=tmp_path / "out", settings=settings)
    assert record["scale"] == "paper"
    assert [len(cell["result"]["accuracy"]) for cell in record["cells"]] == [2] * 4
    assert str(data_dir()) not in (tmp_path / "out" / "table5" / "record.json").read_text()


def test_b_of_figure_1_is_the_minimizer() -> None:
    settings = load("fig1").settings["laptop"] | {"rows": 40}
    E, H, B = problem({"dataset": "digits", "base": "fitted", "rate": 0.3}, settings, StudyData(None))
    B.requires_grad_()
    (grad,) = torch.autograd.grad(expected_loss(E, H, B, 0.7), B)
    assert grad.abs().max() < 1e-9 * E.square().sum()


def test_many_masks_at_once_average_as_single_ones() -> None:
    net, x, y = small_net()
    assert net(x, 0.5, torch.Generator().manual_seed(1), 4).shape == (4, 6, 5)
    torch.testing.assert_close(net(x, 0.0, None, 3)[2], net(x))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        together = mean_loss(net(x, 0.4, torch.Generator().manual_seed(2), 4000), y, False)
        single = torch.stack([mean_loss(net(x, 0.4, g), y, False) for _ in range(2000)])
    error = float(single.std()) * (1 / 2000 + 1 / 4000) ** 0.5
    assert abs(float(together - single.mean())) <= 4 * error


def test_exact_and_averaged_gradients_agree_where_both_exist() -> None:
    net, x, y = small_net([2])
    exact = torch.autograd.grad(exact_loss(net, x, y, 0.4), net.parameters)
    g = torch.Generator().manual_seed(4)
    draws = [torch.autograd.grad(mean_loss(net(x, 0.4, g, 16), y, True), net.parameters) for _ in range(300)]
    for place, wanted in enumerate(exact):
        found = torch.stack([d[place] for d in draws])
        distance = (found.mean(0) - wanted).abs() / (found.std(0) / 300**0.5).clamp(min=1e-9)  # dead units: 0 and 0
        assert float(distance.max()) < 4.5  # the largest of 36 entries
        # the closed form at another rate is noticed
    other = torch.autograd.grad(exact_loss(net, x, y, 0.5), net.parameters)[1]
    found = torch.stack([d[1] for d in draws])
    assert float(((found.mean(0) - other).abs() / (found.std(0) / 300**0.5)).max()) > 6
