"""A classifier's batch in parts of similar length: the same loss and gradients, less padding, and only where it pays."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import Tensor, nn

from alloralib import AlloraConfig, fast_paths
from alloralib.ops import held
from alloralib.records import RunRecord
from alloralib.training import cutting
from alloralib.training.config import RunConfig
from alloralib.training.run import train
from alloralib.training.trainers import ClassificationTrainer

from ..adapters.models import bert

LENGTHS = [30, 200, 28, 190, 33, 29]


def batch(lengths: list[int]) -> dict[str, Tensor]:
    """Random rows of three classes, with padding on the right."""
    g = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(1, 60, (len(lengths), max(lengths)), generator=g)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(len(lengths)) % 3}


def cost(lengths: list[int], chosen: list[list[int]]) -> int:
    return sum(cutting.CALL + max(lengths[row] for row in rows) * len(rows) for rows in chosen)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_the_parts_are_the_cheapest_of_all(lengths: list[int]) -> None:
    found = cutting.parts(lengths)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    if max(lengths) * len(lengths) <= (1 + cutting.MOST_PADDING) * sum(lengths):
        assert len(found) == 1
        return
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    ways = (
        [order[a:b] for a, b in pairwise((0, *cuts, len(order)))]
        for count in range(len(order))
        for cuts in combinations(range(1, len(order)), count)
    )
    assert cost(lengths, found) == min(cost(lengths, way) for way in ways)


def gradients(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of the mean over the rows of all batches."""
    model.zero_grad()
    rows = sum(len(b["labels"]) for b in batches)
    for b in batches:
        (model(**b).loss * (len(b["labels"]) / rows)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_parts_have_the_gradients_of_the_batch_and_a_token_less_has_not(monkeypatch) -> None:
    model = get_peft_model(bert(), AlloraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    whole = batch(LENGTHS)
    parts = cutting.cut(whole)
    assert [p["input_ids"].shape for p in parts] == [(2, 200), (4, 33)]
    expected = gradients(model, [whole])
    for name, gradient in gradients(model, parts).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)

    right = cutting._part
    monkeypatch.setattr(cutting, "_part", lambda value, rows, width, name: right(value, rows, width - 1, name))
    shorter = gradients(model, cutting.cut(whole))
    assert any(not torch.allclose(g, expected[name], rtol=1e-3, atol=1e-5) for name, g in shorter.items())


@pytest.mark.parametrize("what", ["left", "no-mask", "positions", "short"])
def test_what_is_not_known_or_does_not_pay_stays_whole(what: str) -> None:
    inputs = batch(LENGTHS)
    if what == "left":
        inputs |= {key: inputs[key].flip(1) for key in ("input_ids", "attention_mask")}
    elif what == "no-mask":
        del inputs["attention_mask"]
    elif what == "positions":
        inputs["position_ids"] = torch.arange(200).expand(6, 200)
    else:
        inputs = batch([9, 9, 8, 5])  # much padding, of few tokens
    (found,) = cutting.cut(inputs)
    assert found is inputs


@pytest.fixture
def settings(tiny_llama, tmp_path) -> dict:
    rows = tmp_path / "rows.csv"
    lines = ["good film,pos", "bad,neg", "the story is great and fine " * 12 + ",pos", "awful plot " * 30 + ",neg"] * 4
    rows.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return {
        "task": "classification", "model": tiny_llama, "data": str(rows), "output_dir": str(tmp_path / "run"), "r": 2,
        "max_steps": 3, "batch_size": 8, "overwrite": True, "optimizer": "sgd", "learning_rate": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_cuts_and_its_record_does_not_change(accumulation: int, settings, monkeypatch) -> None:
    settings |= {"gradient_accumulation": accumulation}
    shapes: list[tuple[int, ...]] = []
    scales: list[int] = []
    forward, row_scale = nn.Embedding.forward, held.row_scale

    def seen(self, ids):
        if torch.is_grad_enabled():
            shapes.append(tuple(ids.shape))
        return forward(self, ids)

    def counted(*args):
        scales.append(1)
        return row_scale(*args)

    monkeypatch.setattr(nn.Embedding, "forward", seen)
    monkeypatch.setattr(held, "row_scale", counted)
    found = {}
    for on in (True, False):
        shapes.clear()
        scales.clear()
        with fast_paths(packed=on):
            train(RunConfig.of(settings))
        record = RunRecord.read(f"{settings['output_dir']}/record.json")
        found[on] = record, sum(rows * width for rows, width in shapes), len(shapes), len(scales)
    (record, places, passes, norms), (expected, padded, fewer, once) = found[True], found[False]
    assert places < 0.8 * padded
    assert passes > fewer
    assert norms == once  # held from part to part
    for a, b in zip(record.history, expected.history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_processes_and_compiled_blocks_call_the_model_once_a_batch() -> None:
    def cuts(processes: int = 1, compiles: bool = False) -> bool:
        trainer = SimpleNamespace(args=SimpleNamespace(world_size=processes), compiles=compiles)
        return ClassificationTrainer.cuts.fget(trainer)

    assert cuts()
    assert not cuts(processes=2)
    assert not cuts(compiles=True)
    with fast_paths(packed=False):
        assert not cuts()
