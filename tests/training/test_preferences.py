"""The examples of preference training and of GRPO, on a tiny model: TRL trains our adapter by the rule."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alloralib import load_config
from alloralib.adapters.layers import AlloraLayer

ETA, RATE = 2.0, 0.5
EXAMPLES = Path(__file__).parents[2] / "examples"
SGD = {
    "optim": "sgd", "learning_rate": RATE, "max_grad_norm": 0.0, "gradient_checkpointing": False, "disable_tqdm": True,
}  # fmt: skip


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAIRS = Dataset.from_list(
    [
        {"prompt": "the film was", "chosen": " very good", "rejected": " very bad"},
        {"prompt": "the plot and the actor", "chosen": " great", "rejected": " awful music"},
    ]
)
PROMPTS = Dataset.from_list([{"prompt": "the film was very", "answer": "good"}, {"prompt": "a poor", "answer": "bad"}])


def letters(completions: list[str], **_) -> list[float]:
    """A reward that is almost never the same for two completions of a random model."""
    return [sum(map(ord, text)) % 101 / 101 for text in completions]


def trainer_of(name: str, model: str, path: Path, steps: int, **settings):
    if name == "dpo":
        return example("dpo").build(model, steps, str(path), PAIRS, **({"per_device_train_batch_size": 2} | settings))
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 5}
    return example("grpo").build(model, steps, str(path), PROMPTS, rewards=[letters], **(small | settings))


def layers_of(trainer) -> list[AlloraLayer]:
    found = [m for m in trainer.model.modules() if isinstance(m, AlloraLayer)]
    assert found
    return found


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_the_first_step_follows_the_rule(name: str, tiny_llama: str, tmp_path) -> None:
    """B starts at 0, where the scale is eta: after one step of SGD it is -rate * eta * LoRA's gradient.

    LoRA's gradient is taken on the trainer's own batch, at the moment it computes the loss, with our variant gone.
    """
    trainer = trainer_of(name, tiny_llama, tmp_path, 1, **SGD)
    lora_grads: dict[str, torch.Tensor] = {}
    compute_loss = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        held = [(layer, dict(layer.lora_variant)) for layer in layers_of(trainer)]
        for layer, _ in held:
            layer.lora_variant.clear()
        named = {n: p for n, p in trainer.model.named_parameters() if "lora_B" in n}
        loss = compute_loss(model, inputs, *args, **kwargs)
        lora_grads.update(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        for layer, variants in held:
            layer.lora_variant.update(variants)
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    assert max(g.abs().max() for g in lora_grads.values()) > 1e-5
    for key, p in trainer.model.named_parameters():
        if "lora_B" in key:
            torch.testing.assert_close(p.detach(), -RATE * ETA * lora_grads[key], rtol=1e-3, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_trains_logs_finite_numbers_and_loads_in_stock_peft(name: str, tiny_llama: str, tmp_path) -> None:
    trainer = trainer_of(name, tiny_llama, tmp_path, 3, disable_tqdm=True)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    number = "rewards/margins" if name == "dpo" else "reward"
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry[number]) for entry in logs)
    assert all(layer.lora_B["default"].weight.abs().max() > 0 for layer in layers_of(trainer))
    trainer.model.save_pretrained(str(tmp_path / "saved"))
    assert load_config(tmp_path / "saved").eta == ETA
    (tmp_path / "saved" / "allora_config.json").unlink()
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(tmp_path / "saved"))
    assert not any(isinstance(m, AlloraLayer) for m in again.modules())
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, trainer.model.eval()(tokens).logits)


def test_two_runs_start_from_the_same_adapter(tiny_llama: str, tmp_path) -> None:
    """TRL makes the adapter before it sets the seed."""
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        trainer = trainer_of("dpo", tiny_llama, tmp_path, 1)
        states.append({n: p for n, p in trainer.model.named_parameters() if "lora_A" in n})
    assert all(torch.equal(p, states[1][n]) for n, p in states[0].items())


def test_the_rewards_can_be_checked_by_hand() -> None:
    grpo = example("grpo")
    texts = [" positive", " Negative.", " I think", "", " positive and"]
    right = ["positive", "positive", "negative", "negative", "positive"]
    assert grpo.correct(texts, answer=right) == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert grpo.in_format(texts) == [0.5, 0.5, 0.0, 0.0, 0.5]
