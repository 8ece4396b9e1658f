"""The adapter in other trainers: transformers' Trainer and add_adapter, TRL, accelerate, plain PyTorch."""

import datasets
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from alloralib import AlloraConfig, load_config
from alloralib.adapters.layers import Linear
from alloralib.ops import reference

from ..adapters.models import bert, gradients, llama, randomise, tokens
from ..tiny import word_level

LM = {"input_ids": tokens(), "labels": tokens()}


def allora_layers(model) -> list[Linear]:
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    assert layers
    return layers


def tokenizer() -> PreTrainedTokenizerFast:
    return word_level(["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "road", ".", "?", "yes", "no"])


def assert_moved_by_the_rule(model, rate: float, start: dict) -> None:
    """After one SGD step from B = 0, B is -rate * eta * LoRA's gradient; taken from a copy without the variant."""
    moved = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_B" in n}
    assert moved
    model.load_state_dict(start, strict=False)
    for layer in allora_layers(model):
        layer.lora_variant.clear()
    lora_grads = gradients(model.eval(), LM)
    for name, after in moved.items():
        torch.testing.assert_close(after, -rate * 1.7 * lora_grads[name], rtol=1e-3, atol=1e-7, msg=name)


def state(model) -> dict:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def arguments(path, **more) -> TrainingArguments:
    settings = {
        "output_dir": str(path), "max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 0.5, "optim": "sgd",
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "disable_tqdm": True, "bf16": False,
    }  # fmt: skip
    return (SFTConfig if more.pop("sft", False) else TrainingArguments)(**settings, **more)


def test_plain_pytorch() -> None:
    model = get_peft_model(llama(), AlloraConfig(r=3, eta=1.7, target_modules="all-linear")).eval()
    start = state(model)
    gradients(model, LM)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    assert_moved_by_the_rule(model, 0.5, start)


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_accelerate(apply_to: str) -> None:
    config = AlloraConfig(r=3, eta=1.7, target_modules="all-linear", apply_to=apply_to)
    model = get_peft_model(llama(), config).eval()
    start = state(model)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(prepared(**LM).loss)
    optimizer.step()
    assert_moved_by_the_rule(accelerator.unwrap_model(prepared), 0.5, start)


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_transformers_trainer(tmp_path, apply_to: str) -> None:
    config = AlloraConfig(r=3, eta=1.7, target_modules="all-linear", apply_to=apply_to)
    model = get_peft_model(llama(), config)
    start = state(model)
    rows = datasets.Dataset.from_dict({k: v.tolist() for k, v in LM.items()})
    Trainer(model, arguments(tmp_path), train_dataset=rows).train()
    assert_moved_by_the_rule(model, 0.5, start)


def test_transformers_add_adapter(tmp_path) -> None:
    model = llama()
    model.add_adapter(AlloraConfig(r=3, eta=1.7, target_modules=["q_proj", "down_proj"]), adapter_name="first")
    model.add_adapter(AlloraConfig(r=2, eta=1.0, target_modules=["q_proj"]), adapter_name="second")
    model.set_adapter("first")
    randomise(model, "first")
    grads = gradients(model, LM)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear)}
    held = {n: m.lora_variant.pop("first") for n, m in layers.items()}
    lora_grads = gradients(model, LM)
    compared = 0
    for name, layer in layers.items():
        s = reference.scale(layer.adapter_row_norms("first"), 1.7)
        key = f"{name}.lora_B.first.weight"
        torch.testing.assert_close(grads[key], lora_grads[key] * s[:, None], rtol=1e-3, atol=1e-6)
        layer.lora_variant["first"] = held[name]
        compared += 1
    assert compared == 4
    expected = model(**LM).logits
    model.save_pretrained(tmp_path)
    assert load_config(tmp_path).eta == 1.7
    again = llama()
    again.load_adapter(str(tmp_path))
    torch.testing.assert_close(again(**LM).logits, expected)
    trained = llama()  # transformers reads PEFT's file alone: to train on, hand it the configuration
    trained.load_adapter(str(tmp_path), peft_config=load_config(tmp_path), is_trainable=True)
    torch.testing.assert_close(trained(**LM).logits, expected)
    assert {layer.lora_variant["default"].rule.eta for layer in allora_layers(trained)} == {1.7}
    assert isinstance(PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True).peft_config["default"], AlloraConfig)


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_trl_peft_config(tmp_path, apply_to: str) -> None:
    rows = datasets.Dataset.from_dict({"prompt": ["the cat sat on", "the dog"], "completion": [" the mat .", " ran ."]})
    config = AlloraConfig(r=3, eta=1.7, target_modules="all-linear", apply_to=apply_to)
    args = arguments(tmp_path, sft=True, gradient_checkpointing=False)
    trainer = SFTTrainer(llama(), args, train_dataset=rows, processing_class=tokenizer(), peft_config=config)
    layers = allora_layers(trainer.model)
    assert {type(layer.lora_variant["default"]).__name__ for layer in layers} == {"LinearVariant"}
    assert {layer.lora_variant["default"].rule.gradient for layer in layers} == {"row" if apply_to == "gradient" else "plain"}
    start = state(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()
    moved = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_B" in n}
    trainer.model.load_state_dict(start)
    for layer in layers:
        layer.lora_variant.clear()
    lora_grads = gradients(
        trainer.model.eval(), {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "labels")}
    )
    for name, after in moved.items():
        torch.testing.assert_close(after, -0.5 * 1.7 * lora_grads[name], rtol=1e-3, atol=1e-6)


def test_trl_gradient_checkpointing_and_saving(tmp_path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["the cat sat on the mat .", "the dog ran under the road ."]})
    config = AlloraConfig(r=3, target_modules=["q_proj"])
    trainer = SFTTrainer(
        llama(), arguments(tmp_path, sft=True), train_dataset=rows, processing_class=tokenizer(), peft_config=config
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert isinstance(load_config(tmp_path / "out"), AlloraConfig)


def test_a_second_run_continues_with_the_rule(tmp_path) -> None:
    """Train, save, load for training, train: the second step follows the rule from where the first one ended."""
    base = bert()
    inputs = {"input_ids": tokens(), "labels": torch.tensor([0, 2])}
    config = AlloraConfig(r=3, eta=1.7, target_modules=["query", "value"], task_type="SEQ_CLS")
    torch.manual_seed(0)
    model = get_peft_model(base, config).eval()

    def step(model) -> None:
        gradients(model, inputs)
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()

    step(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert(), tmp_path, is_trainable=True).eval()
    step(model)
    step(again)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)
