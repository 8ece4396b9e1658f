"""All arms compute the same function, on the same frozen weights."""

from typing import Any

import pytest
import torch
from torch import nn

from alloralib import fast_paths
from benchmarks import arms, measuring

from .models import R, bert, llama


def factors(arm: arms.Arm, which: str) -> list[nn.Parameter]:
    return [p for name, p in arm.model.named_parameters() if which in name]


@pytest.mark.parametrize("make", [llama, bert])
def test_the_arms_compute_the_same_function(make: Any) -> None:
    """With equal A and B and no dropout, LoRA is one function in every package. rsLoRA differs by its factor, DoRA by norms."""
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
    assert not torch.equal(frozen.loss(), full.loss()), "full fine-tuning must change its own weights and no others"
    assert not torch.equal(factors(ours, "lora_B")[0], factors(built["peft-lora"], "lora_B")[0])


def test_the_chunked_loss_equals_the_models_loss_and_keeps_less() -> None:
    model, batch = llama()
    built = arms.build_all(["allora", *arms.CHUNKED], model, batch, R)
    for name in arms.CHUNKED:
        torch.testing.assert_close(built[name].loss(), built["allora"].loss())
    kept = [measuring.kept_by(built[name]) for name in ("allora", *arms.CHUNKED)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3


def test_allora_keeps_no_more_than_lora() -> None:
    model, batch = llama()
    built = arms.build_all(["allora", "peft-lora", "peft-lora-dropout", "frozen"], model, batch, R)
    kept = {name: measuring.kept_by(arm) for name, arm in built.items()}
    assert kept["frozen"] < kept["allora"] <= kept["peft-lora"] < kept["peft-lora-dropout"]


def test_the_unfused_arm_runs_without_the_fused_node() -> None:
    """The arm's switch holds in its own passes and nowhere else."""
    from alloralib.ops.fast_paths import current

    arm = arms.build("allora-unfused", *llama(), R)
    seen: list[bool] = []
    arm.model.register_forward_pre_hook(lambda *_: seen.append(current().fused))
    arm.step()
    assert seen == [False]
    assert current().fused
    with fast_paths(fused=False):
        assert not current().fused
