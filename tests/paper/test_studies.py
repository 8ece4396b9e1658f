"""Every study runs at a tiny size on real data, twice with one outcome; and the parts its verdict hangs on are right."""

import pytest
import torch
import torch.nn.functional as F
from alloralib.ops.dropout_theory import expected_loss
from alloralib.studies.catalogue import load
from alloralib.studies.fig1 import problem
from alloralib.studies.fig4 import _exact, _loss
from alloralib.studies.frame import run_study
from alloralib.studies.images import StudyData
from alloralib.studies.mlp import LoraMlp, Mlp, batches, dropout
from alloralib.studies.proposition1 import Stack
from transformers import AutoTokenizer

from ..places import data_dir
from ..tiny import save_qwen2

SMALL = {"sizes": [784, 16, 16, 10], "rank": 2, "pretrain_rows": 128, "pretrain_epochs": 1, "rows": 64}
TINY = {
    "fig1": {"rows": 24, "rank": 2, "repeats": 2, "rates": [0.05, 0.5], "realisations": [1, 10, 300]},
    "fig2": {"rows": 160, "masks": 4, "seeds": 2, "epochs": 2, "hidden": [16, 16]},
    "fig3": SMALL | {"rates": [0.0, 0.5], "seeds": 2, "steps": 6, "every": 3},
    "fig4": SMALL | {"rates": [0.1, 0.5], "seeds": 2, "steps": 6, "last_layer_steps": 6, "masks": 3,
             "every": 2, "test_rows": 50},
    "fig6": {"points": 11},
    "proposition1": {
        "width": 16, "rank": 2, "depths": [1, 4], "trained_depths": [2, 4], "pretrain_rows": 128, "pretrain_epochs": 1,
        "rows": 64, "seeds": 2, "steps": 3,
        "transformer": {
            "model": "minilm-l6", "data": "trec", "depths": [2, 4], "r": 2, "eta": 2.0, "train_rows": 16, "test_rows": 8,
            "max_length": 8, "matched_rows": 8, "batch": 8, "steps": 1,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_runs_and_repeats(name, tmp_path) -> None:
    study = load(name)
    for output in ("a", "b"):
        record = run_study(study, data_dir=data_dir(), output_dir=tmp_path / output, settings=TINY[name])
        assert [f["claim"] for f in record["findings"]] == [c.name for c in study.claims]
    for file in ("record.json", f"{name}.png"):
        assert (tmp_path / "a" / name / file).read_bytes() == (tmp_path / "b" / name / file).read_bytes()
    assert str(data_dir()) not in (tmp_path / "a" / name / "record.json").read_text()


def test_table5_at_paper_scale_with_a_tiny_qwen2(tmp_path) -> None:
    """The paper's architecture, optimiser and schedule; only model and data are small."""
    study = load("table5")
    model = save_qwen2(tmp_path / "qwen2")
    ids = AutoTokenizer.from_pretrained(model)("a film of some sense").input_ids  # as a run reads them
    assert len(set(ids)) > 8
    small = {"model": model, "data": "rotten_tomatoes", "train_rows": 32, "validation_share": 0.1}
    run = study.settings["paper"]["run"] | small | {"validation_rows": 16, "max_length": 16}
    settings = {"rates": [0.0, 0.4], "epochs": 3, "seeds": 2, "run": run}
    record = run_study(study, scale="paper", data_dir=data_dir(), output_dir=tmp_path / "out", settings=settings)
    assert record["scale"] == "paper"
    assert [len(cell["result"]["accuracy"]) for cell in record["cells"]] == [3] * 4
    assert str(data_dir()) not in (tmp_path / "out" / "table5" / "record.json").read_text()


def test_fig1_b_is_the_minimiser() -> None:
    settings = load("fig1").settings["laptop"] | {"rows": 40}
    E, H, B = problem({"dataset": "digits", "base": "fitted", "rate": 0.3}, settings, StudyData(None))
    B.requires_grad_()
    (grad,) = torch.autograd.grad(expected_loss(E, H, B, 0.7), B)
    assert grad.abs().max() < 1e-9 * E.square().sum()


def small_net(layers=None):
    g = torch.Generator().manual_seed(0)
    base = Mlp([12, 9, 7, 5], g)
    net = LoraMlp(base, 3, g, layers)
    with torch.no_grad():
        for B in net.B.values():
            B.normal_(generator=g)
    return net, torch.randn(6, 12, generator=g), torch.arange(6) % 5


def test_many_masks_are_many_single_ones() -> None:
    net, x, y = small_net()
    assert net(x, 0.5, torch.Generator().manual_seed(1), 4).shape == (4, 6, 5)
    torch.testing.assert_close(net(x, 0.0, None, 3)[2], net(x))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        together = _loss(net(x, 0.4, torch.Generator().manual_seed(2), 4000), y, False)
        single = torch.stack([_loss(net(x, 0.4, g), y, False) for _ in range(2000)])
    error = float(single.std()) * (1 / 2000 + 1 / 4000) ** 0.5
    assert abs(float(together - single.mean())) <= 4 * error


def test_exact_and_averaged_gradients_agree_where_both_exist() -> None:
    net, x, y = small_net([2])
    exact = torch.autograd.grad(_exact(net, x, y, 0.4), net.parameters)
    g = torch.Generator().manual_seed(4)
    draws = [torch.autograd.grad(_loss(net(x, 0.4, g, 16), y, True), net.parameters) for _ in range(300)]
    for place, wanted in enumerate(exact):
        found = torch.stack([d[place] for d in draws])
        distance = (found.mean(0) - wanted).abs() / (found.std(0) / 300**0.5).clamp(min=1e-9)  # dead units: 0 and 0
        assert float(distance.max()) < 4.5  # the largest of 36 entries
        # and a closed form at another rate would be noticed
    other = torch.autograd.grad(_exact(net, x, y, 0.5), net.parameters)[1]
    found = torch.stack([d[1] for d in draws])
    assert float(((found.mean(0) - other).abs() / (found.std(0) / 300**0.5)).max()) > 6


def test_dropout_keeps_the_mean() -> None:
    x = torch.ones(200_000)
    kept = dropout(x, 0.3, torch.Generator().manual_seed(5))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float(kept.mean()) == pytest.approx(1, abs=4 * (0.3 / 0.7 / 200_000) ** 0.5)


def test_batches_are_whole_epochs() -> None:
    order = batches(10, 3, 7, torch.Generator().manual_seed(0))
    assert [len(b) for b in order] == [3] * 7
    assert len(set(torch.cat(order[:3]).tolist())) == 9


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_the_first_step_moves_every_depth_alike(depth, normed) -> None:
    g = torch.Generator().manual_seed(0)
    net = Stack(16, depth, normed, g)
    net.adapt(2, 2.0, g)
    x, y = torch.randn(40, 784, generator=g), torch.arange(40) % 10
    lr = net.matched_rate(x, y, 0.02)
    before = net.hidden(x).detach()
    net.step(F.cross_entropy(net.head(net.hidden(x)), y), lr)
    moved = float((net.hidden(x).detach() - before).norm() / before.norm())
    assert moved == pytest.approx(0.02, rel=0.25)  # first order in the rate


def test_one_layer_alone_has_no_interaction() -> None:
    g = torch.Generator().manual_seed(0)
    net = Stack(16, 2, True, g)
    net.adapt(2, 2.0, g)
    with torch.no_grad():
        net.B[1].normal_(generator=g)
    x = torch.randn(5, 784, generator=g)
    torch.testing.assert_close(net.hidden(x), net.hidden(x, {1}))
    torch.testing.assert_close(net.hidden(x, set()), net.hidden(x, {0}))
