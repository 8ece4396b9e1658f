"""The benchmarks count right, their arms compute the same, and what the docs say is what the records say. Nothing is timed."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from alloralib import fast_paths
from benchmarks import arms, growth, measuring, page, profile_step, stacks, step
from benchmarks.floor import floor
from benchmarks.models import stack

ROWS, LENGTH, R = 2, 8, 4
llama_config: Any = LlamaConfig
bert_config: Any = BertConfig


def llama() -> tuple[Any, arms.Batch]:
    torch.manual_seed(0)
    config = llama_config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.randint(1, 64, (ROWS, LENGTH))
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids, "use_cache": False}


def bert() -> tuple[Any, arms.Batch]:
    torch.manual_seed(0)
    config = bert_config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=3,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.randint(1, 64, (ROWS, LENGTH))
    return BertForSequenceClassification(config), {"input_ids": ids, "labels": torch.arange(ROWS)}


def small_stack() -> tuple[Any, arms.Batch]:
    model, batch = stack(192, 1, ROWS, LENGTH, "float32")
    model.config._attn_implementation = "eager"
    return model, batch


def factors(arm: arms.Arm, which: str) -> list[nn.Parameter]:
    return [p for name, p in arm.model.named_parameters() if which in name]


def operations(arm: arms.Arm) -> int:
    aten = torch.ops.aten

    def addmm_(out: Any, a: Any, b: Any, **_: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={aten.addmm_: addmm_}) as counter:
        arm.loss().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("make", "inputs_want"), [(llama, False), (bert, False), (small_stack, True)])
def test_the_floor_is_what_is_computed(make: Any, inputs_want: bool) -> None:
    model, batch = make()
    expected = floor(model, ROWS, LENGTH, R, inputs_want=inputs_want)
    frozen = operations(arms.build("frozen", copy.deepcopy(model), batch, R))
    assert frozen == expected.frozen
    adapted = operations(arms.build("allora", copy.deepcopy(model), batch, R))
    first = _products_for_inputs(model) if not inputs_want else 0
    assert adapted == frozen - first + expected.adapters + expected.rule


def _products_for_inputs(model: Any) -> int:
    """The limit's gradients at the model's inputs, which an adapted model with frozen embeddings does without."""
    from benchmarks.floor import _first

    layers: list[Any] = [model.get_submodule(name) for name in _first(arms.linear_names(model))]
    return sum(2 * ROWS * LENGTH * layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize("make", [llama, bert])
def test_the_arms_compute_the_same(make: Any) -> None:
    """With A, B and no dropout, every LoRA is one function; rsLoRA differs by its factor, DoRA by its norms."""
    model, batch = make()
    names = [name for name in arms.TITLES if name not in arms.missing() and name not in arms.CHUNKED]
    built = arms.build_all(names, model, batch, R)
    ours = built["allora"]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in factors(ours, "lora_B"):
            parameter.normal_(generator=generator, std=0.2)
    plain = ours.loss()
    for name in set(names) & {*arms.PATHS, "peft-lora", "loralib", "litgpt"}:
        other = built[name]
        with torch.no_grad():
            for which in ("lora_A", "lora_B"):
                mine, theirs = factors(ours, which), factors(other, which)
                assert [p.shape for p in mine] == [p.shape for p in theirs], name
                for source, target in zip(mine, theirs, strict=True):
                    target.copy_(source)
        torch.testing.assert_close(other.loss(), plain, msg=name)
        trained = {n.rpartition("lora_")[1] for n, p in other.model.named_parameters() if p.requires_grad}
        assert trained == {"lora_"}, name
    frozen, full = built["frozen"], built["full"]
    torch.testing.assert_close(frozen.loss(), full.loss())
    places = {name: {p.data_ptr() for p in arm.model.parameters()} for name, arm in built.items()}
    weights = places["frozen"]
    for name, arm in built.items():
        assert weights.isdisjoint(places[name]) if name == "full" else weights <= places[name], name
        arm.step()
    assert not torch.equal(frozen.loss(), full.loss()), "full fine-tuning moves its own weights and nobody else's"
    assert not torch.equal(factors(ours, "lora_B")[0], factors(built["peft-lora"], "lora_B")[0])


def test_the_loss_of_allora_train_is_the_loss() -> None:
    model, batch = llama()
    built = arms.build_all(["allora", *arms.CHUNKED], model, batch, R)
    for name in arms.CHUNKED:
        torch.testing.assert_close(built[name].loss(), built["allora"].loss())
    kept = [measuring.kept_by(built[name]) for name in ("allora", *arms.CHUNKED)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3


def test_kept_bytes_counts_what_is_kept() -> None:
    x = torch.randn(10, 6, requires_grad=True)
    layer = nn.Linear(6, 5)
    known = [x, *layer.parameters()]
    # x and the weight are there anyway; exp and the product keep an output each; the view is no second copy
    assert measuring.kept_bytes(lambda: layer(x), known) == 0
    assert measuring.kept_bytes(lambda: layer(x).exp(), known) == 10 * 5 * 4
    assert measuring.kept_bytes(lambda: layer(x).exp().view(50).exp(), known) == 2 * 10 * 5 * 4
    assert measuring.kept_bytes(lambda: layer(x), layer.parameters()) == 10 * 6 * 4


def test_the_rule_keeps_no_more_than_lora() -> None:
    model, batch = llama()
    built = arms.build_all(["allora", "peft-lora", "peft-lora-dropout", "frozen"], model, batch, R)
    kept = {name: measuring.kept_by(arm) for name, arm in built.items()}
    assert kept["frozen"] < kept["allora"] <= kept["peft-lora"] < kept["peft-lora-dropout"]


def test_steps_take_turns() -> None:
    order: list[str] = []
    seconds = measuring.alternate({name: lambda name=name: order.append(name) for name in "abc"}, rounds=20, warmup=1)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = ["".join(order[k : k + 3]) for k in range(0, 63, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) == 6  # so that each has been behind each other one
    times = {"a": [1.0, 4.0, 9.0], "b": [1.0, 1.0, 3.0]}
    assert measuring.ratio(times, "a", "b") == 4.0
    assert measuring.paired(times, "a", "b")[1] == 3.0


def test_unfused_runs_unfused() -> None:
    """The arm's switch holds in its passes and nowhere else."""
    from alloralib.ops.fast_paths import current

    arm = arms.build("allora-unfused", *llama(), R)
    seen: list[bool] = []
    arm.model.register_forward_pre_hook(lambda *_: seen.append(current().fused))
    arm.step()
    assert seen == [False]
    assert current().fused
    with fast_paths(fused=False):
        assert not current().fused


def test_the_page_and_the_readme_are_the_records() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()
    text = page.README.read_text(encoding="utf-8")
    assert page.readme(text) == text
    for kind in measuring.kinds():
        assert page._picture(kind).is_file() == (measuring.read("stacks", kind) is not None)


def test_the_record_shows_what_is_promised() -> None:
    """Below PEFT LoRA with dropout and below DoRA; a record is committed, so this times nothing."""
    records = [record for kind in measuring.kinds() if (record := measuring.read("step", kind))]
    assert records
    for record in records:
        for peer in ("peft-lora-dropout", "peft-dora"):
            assert measuring.ratio(record["seconds"], "allora", peer) < 1


def made_up(slope: float) -> measuring.Record:
    """A record in which every method costs 1 ms per layer and `slope` seconds per GFLOP more than the limit."""
    points: list[measuring.Record] = []
    for point in stacks.points(None):
        gflop = 1e-3 * point.r * point.tokens * point.width * point.layers / 1024
        limit = 1e-9 * point.tokens * point.width**2 * point.layers
        more = 1e-3 * point.layers + slope * gflop
        points.append(
            stacks.asdict(point)
            | {
                "floor": {"frozen": 1, "adapters": gflop * 1e9, "rule": 0, "ratio": 1.05},
                "kept": {"allora": 5, "peft-lora": 10},
                "seconds": {"frozen": [limit] * 3} | {arm: [limit + more] * 3 for arm in growth.SHORT},
            }
        )
    return {"what": "made up", **measuring.environment(), "points": points}


def test_fits_find_what_is_there(tmp_path) -> None:
    record = made_up(slope=0.02)
    a, b, error = growth.cost(record, "allora-default")
    assert (a, b) == pytest.approx((1e-3, 0.02), rel=1e-6)
    assert error < 1e-6
    assert growth.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert growth.exponent([1, 2, 4], [3, -1, 48]) is None
    text = growth.fits(record)
    assert "| hidden size | 2.00 |" in text
    assert "| tokens | 1.00 |" in text
    assert growth.tables(record).count("\n| 1024 |") == 3  # among widths in both dtypes, and tokens
    growth.draw(record, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("phase", "name", "shapes", "what"),
    [
        ("forward", "aten::mm", [[512, 576], [576, 1536]], profile_step.BASE),
        ("forward", "mkldnn::_linear_pointwise", [[512, 576], [1536, 576], [], []], profile_step.BASE),
        ("backward", "mkldnn::_linear_pointwise", [[512, 1536], [576, 1536], [], []], profile_step.BASE),
        ("forward", "aten::mm", [[512, 576], [576, 48]], profile_step.H),
        ("forward", "aten::addmm_", [[512, 1536], [512, 16], [16, 1536]], profile_step.OUT),
        ("backward", "aten::mm", [[512, 1536], [1536, 32]], profile_step.P),
        ("backward", "aten::mm", [[1536, 512], [512, 16]], profile_step.GRADS),
        ("backward", "mkldnn::_linear_pointwise", [[16, 512], [1536, 512], [], []], profile_step.GRADS),
        ("backward", "aten::mm", [[48, 512], [512, 576]], profile_step.GRADS),
        ("backward", "aten::addmm_", [[512, 576], [512, 48], [48, 576]], profile_step.GRAD_X),
        ("backward", "aten::addmm_", [[512, 576], [512, 1536], [1536, 576]], profile_step.BASE),
        ("backward", "aten::mm", [[16, 576], [576, 16]], profile_step.RULE),
        ("backward", "aten::mm", [[576, 16], [16, 16]], profile_step.RULE),
        ("backward", "aten::mul", [[576, 1], [576, 16]], profile_step.RULE),
        ("backward", "aten::rsub", [[155520], [], []], profile_step.RULE),
        ("backward", "aten::mul", [[], []], profile_step.OTHERS),
        ("backward", "aten::mul", [[4, 128, 576], [576]], profile_step.OTHERS),
        ("forward", "aten::mm", [[512, 576], [576, 49152]], profile_step.LOGITS),
        ("update", "aten::mul_", [[16, 576], []], profile_step.OPTIMISER),
    ],
)
def test_operations_have_names(phase: str, name: str, shapes: Any, what: str) -> None:
    assert profile_step.category(phase, name, shapes, tokens=512, r=16, vocabulary=49152) == what


def test_the_rule_alone_is_taken_over_all_layers(monkeypatch) -> None:
    from alloralib.ops import scale

    arm = arms.build("allora", *llama(), R)
    norms: list[torch.Size] = []
    real = scale.row_norms
    monkeypatch.setattr(scale, "row_norms", lambda A, B: norms.append(B.shape) or real(A, B))
    step.rule(arm.model)()
    assert len(norms) == len(arms.linear_names(llama()[0])) == 14
