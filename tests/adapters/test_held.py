"""The rule's scale once per optimizer step: the same training, and no scale of factors that are no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import Trainer

from alloralib import AlloraConfig, fast_paths, hold_row_scales
from alloralib.ops import held, scale

from ..training.test_other_trainers import arguments
from .models import Convs, gpt2, llama, randomise, tokens


class DataSGD(torch.optim.Optimizer):
    """Writes past torch's counters, as many optimizers do."""

    def __init__(self, params, rate: float = 1.0) -> None:
        super().__init__(params, {"lr": rate})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * p.grad


@pytest.fixture
def norms_taken(monkeypatch) -> list[tuple[int, ...]]:
    taken: list[tuple[int, ...]] = []
    right = scale.row_norms
    monkeypatch.setattr(scale, "row_norms", lambda A, B: (taken.append(B.shape), right(A, B))[1])
    return taken


def language_model(build: Callable[[], nn.Module] = llama) -> nn.Module:
    targets = ["c_attn", "c_proj", "c_fc"] if build is gpt2 else ["q_proj", "v_proj", "down_proj", "embed_tokens"]
    model = get_peft_model(build(), AlloraConfig(r=3, eta=1.7, target_modules=targets))
    randomise(model)
    return model.eval()


def convolutions() -> nn.Module:
    model = get_peft_model(Convs(), AlloraConfig(r=2, eta=1.7, target_modules=["one", "two", "three", "same"]))
    randomise(model)
    return model


def factors(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def train(
    model: nn.Module, opt: torch.optim.Optimizer, inputs: Callable[[int], Tensor], steps: int = 3, passes: int = 4
) -> None:
    for step in range(steps):
        opt.zero_grad()
        for k in range(passes):
            x = inputs(step * passes + k)
            loss = model(x) if x.is_floating_point() else model(input_ids=x, labels=x).loss
            (loss / passes).backward()
        opt.step()


def words(k: int) -> Tensor:
    return torch.randint(1, 23, (2, 7), generator=torch.Generator().manual_seed(k))


def images(k: int) -> Tensor:
    return torch.randn(2, 48, generator=torch.Generator().manual_seed(k))


MODELS = {
    "llama": (language_model, words),
    "gpt2": (lambda: language_model(gpt2), words),
    "convolutions": (convolutions, images),
}


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.SGD(p, 0.5), lambda p: torch.optim.AdamW(p, 0.1, fused=True), DataSGD]
)
@pytest.mark.parametrize("kind", MODELS)
def test_a_training_within_is_the_same_to_the_bit(kind, optimizer, norms_taken) -> None:
    build, inputs = MODELS[kind]
    model = build()
    start = factors(model)
    train(model, optimizer([p for p in model.parameters() if p.requires_grad]), inputs)
    expected, each_pass = factors(model), len(norms_taken)
    norms_taken.clear()
    again = build()
    with hold_row_scales():
        train(again, optimizer([p for p in again.parameters() if p.requires_grad]), inputs)
    found = factors(again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], start[name]) for name in expected)
    assert len(norms_taken) == each_pass // 4


def test_a_scale_that_outlives_the_step_would_be_told_apart(monkeypatch) -> None:
    monkeypatch.setattr(held, "_forget", lambda *_: None)
    found = []
    for keep in (False, True):
        model = language_model()
        with fast_paths(held=keep), hold_row_scales():
            train(model, DataSGD([p for p in model.parameters() if p.requires_grad], rate=30.0), words)
        found.append(factors(model))
    plain, stale = found
    assert max((plain[name] - stale[name]).abs().max().item() for name in plain) > 1e-3


def passes(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=words(0), labels=words(0)).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_change_in_place_between_two_passes_is_seen() -> None:
    model = language_model()
    with hold_row_scales():
        before = passes(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.mul_(2)
        found = passes(model)
    expected = passes(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(torch.equal(found[name], before[name]) for name in expected)


def test_gradient_checkpointing_takes_them_once_too(norms_taken) -> None:
    model = language_model().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    expected = passes(model)
    layers = len(norms_taken)
    with hold_row_scales():
        for _ in range(3):
            found = passes(model)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(norms_taken) == 2 * layers


def test_two_values_of_eta_do_not_meet() -> None:
    A, B = torch.randn(2, 5).requires_grad_(), torch.randn(4, 2).requires_grad_()
    with hold_row_scales():
        for eta in (1.0, 2.0, 1.0):
            expected = scale.row_scales([(A, B)], eta)[0]
            assert torch.equal(held.once_per_step(A, B, eta), expected)


def test_what_is_made_for_one_pass_is_not_kept(norms_taken) -> None:
    A, B = torch.randn(2, 5).requires_grad_(), torch.randn(4, 2).requires_grad_()
    with hold_row_scales():
        for left, right in ((A, B), (A, B), (A, B.detach() + 0), (A, B.detach() + 0), (A[:1], B[:, :1]), (A[:1], B[:, :1])):
            held.once_per_step(left, right, 2.0)
        assert len(held._held) == 2
    assert len(norms_taken) == 4
    assert held._held is None


def test_it_closes_behind_an_error_and_the_switch_turns_it_off(norms_taken) -> None:
    model = language_model()
    passes(model)
    layers = len(norms_taken)
    with pytest.raises(TypeError), hold_row_scales():
        model(input_ids=words(0), labels=words(0)).loss.backward("no tensor")
    assert held._held is None
    for within, outside in ((fast_paths(held=False), hold_row_scales()), (hold_row_scales(), fast_paths(held=False))):
        norms_taken.clear()
        with outside, within:
            passes(model)
            passes(model)
        assert len(norms_taken) == 2 * layers
    assert held._allowed
    assert held._held is None


def test_around_transformers_trainer(tmp_path, norms_taken) -> None:
    def trained(name: str) -> dict[str, Tensor]:
        model = language_model()
        rows = [{"input_ids": row, "labels": row} for row in tokens(rows=16)]
        args = arguments(tmp_path / name, gradient_accumulation_steps=4)
        args.max_steps = 2
        Trainer(model, args, train_dataset=rows).train()
        return factors(model)

    expected, each_pass = trained("plain"), len(norms_taken)
    norms_taken.clear()
    with hold_row_scales():
        found = trained("held")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(norms_taken) == each_pass // 4
