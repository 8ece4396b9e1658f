"""Loss and gradient of a training step against plain transformers and PEFT, with and without padding, by architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from alloralib import fast_paths
from alloralib.evaluation.next_token import why_not_chunked
from alloralib.training import trainer as trainer_module
from alloralib.training.callbacks import StopOnSignal
from alloralib.training.config import RunConfig
from alloralib.training.directory import RunDirectory
from alloralib.training.prepare import prepare
from alloralib.training.trainer import RunTrainer

from .reload import load_base
from .runs import ALL_LOGITS, CASES, WITH_PADDING, Case

ROWS = [0, 1, 2, 3, 4, 5]
TEXT = [name for name, case in CASES.items() if case.task != "image-classification"]


def trainer_of(case: Case, method: str, directory: Path, **more: Any) -> RunTrainer:
    """The trainer of a run whose adapter is not zero, without dropout."""
    settings = case.prepare(directory) | {"method": method, "r": 2, "output_dir": str(directory / "run")} | more
    if method == "lora":
        settings |= {"dropout": 0.0}
    run = prepare(RunConfig.of(settings), RunDirectory(directory / "run"), StopOnSignal())
    generator = torch.Generator().manual_seed(0)
    for name, p in run.model.named_parameters():
        if "lora_" in name and not p.data.any():
            p.data = torch.randn(p.shape, generator=generator) * 0.3
    trainer = RunTrainer(run)
    trainer.model.eval()
    return trainer


def step_of(trainer: RunTrainer, monkeypatch: pytest.MonkeyPatch, *, packed: bool) -> tuple[Tensor, dict[str, Tensor], bool]:
    """Loss and gradients by name, as in training, and whether the blocks skipped the padding."""
    skipped: list[bool] = []
    right = trainer_module.without_padding

    def without_padding(*args, **kwargs):
        inputs = right(*args, **kwargs)
        skipped.append("packed_rows" in inputs)
        return inputs

    monkeypatch.setattr(trainer_module, "without_padding", without_padding)
    with fast_paths(packed=packed):
        loss = trainer.loss_of(ROWS)
        loss.backward()
    gradients = {name: p.grad for name, p in trainer.run.model.named_parameters() if p.requires_grad and p.grad is not None}
    return loss.detach(), gradients, skipped == [True]


def plain_step(trainer: RunTrainer, directory: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The same with stock transformers and PEFT; the batch is padded here, and the loss is the model's own."""
    run = trainer.run
    save_adapter(run.model, directory / "adapter")
    job = {"task": run.config.task, "model": run.config.model, "classes": None if run.labels is None else len(run.labels)}
    base = load_base(job, run.processor, seed=1)
    config = LoraConfig.from_pretrained(str(directory / "adapter"))
    twin = PeftModel.from_pretrained(base, directory / "adapter", config=config, is_trainable=True).eval()
    twin.load_state_dict(run.model.state_dict(), strict=True)
    examples = [run.examples["train"][row] for row in ROWS]
    length = max(len(example["input_ids"]) for example in examples)
    inputs, mask, labels = [], [], []
    for example in examples:
        ids, missing = example["input_ids"], length - len(example["input_ids"])
        inputs.append([*ids, *[run.processor.pad_token_id] * missing])
        mask.append([1] * len(ids) + [0] * missing)
        labels.append(example["labels"] if run.labels is not None else example["labels"] + [-100] * missing)
    batch = {"input_ids": inputs, "attention_mask": mask, "labels": labels}
    loss = twin(**{name: torch.tensor(values) for name, values in batch.items()}).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in twin.named_parameters() if p.requires_grad and p.grad is not None}


def save_adapter(model: PeftModel, directory: Path) -> None:
    model.peft_config["default"].save_pretrained(str(directory))
    save_file({k: v.clone() for k, v in get_peft_model_state_dict(model).items()}, directory / "adapter_model.safetensors")


@pytest.mark.parametrize("name", TEXT)
def test_a_step_is_that_of_plain_transformers_and_peft(name: str, tmp_path, monkeypatch) -> None:
    """With LoRA, whose gradient autograd has; and of ALLoRA the loss and the gradient of B, which is LoRA's times s."""
    architecture = name.split(",")[0]
    skips = architecture not in WITH_PADDING
    for method in ("lora", "allora"):
        directory = tmp_path / method
        directory.mkdir()
        trainer = trainer_of(CASES[name], method, directory)
        loss, plain = plain_step(trainer, directory)
        for packed in (True, False):
            trainer.model.zero_grad()
            with monkeypatch.context() as patch:
                found, gradients, skipped = step_of(trainer, patch, packed=packed)
            assert skipped == (packed and skips)
            if trainer.run.labels is None:
                assert (why_not_chunked(trainer.run.model) is not None) == (architecture in ALL_LOGITS)
            torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
            assert gradients.keys() == plain.keys()
            for parameter, gradient in gradients.items():
                expected = plain[parameter]
                if method == "allora" and (".lora_A." in parameter or ".lora_embedding_" in parameter):
                    continue  # of s, A's gradient is no simple multiple: see tests/ops/test_scale.py
                if method == "allora" and ".lora_B." in parameter:
                    B, A = (trainer.model.get_parameter(parameter.replace("lora_B", side)) for side in ("lora_B", "lora_A"))
                    expected = expected / ((B @ A).norm(dim=1) + 1 / 2.0**2).sqrt().unsqueeze(1)
                torch.testing.assert_close(
                    gradient, expected, rtol=1e-4, atol=1e-6, msg=lambda text, p=parameter: f"{p}: {text}"
                )


@pytest.mark.parametrize("name", TEXT)
def test_a_step_in_bfloat16_is_near_that_in_float32(name: str, tmp_path) -> None:
    """Padded rows in half precision gave NaN in some models and versions, and DeBERTa mixed its dtypes."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        trainer = trainer_of(CASES[name], "allora", tmp_path / dtype, dtype=dtype)
        loss = trainer.loss_of(ROWS)
        loss.backward()
        losses.append(float(loss.detach()))
        assert all(p.grad.isfinite().all() for p in trainer.run.model.parameters() if p.grad is not None)
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


SPECIAL = {
    "Mistral, language model": {"sliding_window": None},
    "Phi-3, language model": {"sliding_window": None},
    "Gemma 2, language model": {"sliding_window": 64},
    "Gemma 3, language model": {"sliding_window": 64},
    "ModernBERT, classifier": {"local_attention": 128},
}
"""What sets an architecture apart, undone."""
CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}


@pytest.mark.parametrize(
    ("name", "change"), [*SPECIAL.items(), *(("Gemma 2, language model", {k: v}) for k, v in CAPS.items())]
)
def test_the_rows_are_such_that_windows_and_caps_matter(name: str, change: dict[str, Any], tmp_path) -> None:
    """Or the comparison with plain code would not see a step that forgets them."""
    trainer = trainer_of(CASES[name], "allora", tmp_path)
    losses = [float(trainer.loss_of(ROWS).detach())]
    path = Path(trainer.run.config.model) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (tmp_path / "other").mkdir()
    run = prepare(trainer.run.config, RunDirectory(tmp_path / "other" / "run"), StopOnSignal())
    run.model.load_state_dict(trainer.run.model.state_dict())
    other = RunTrainer(run)
    other.model.eval()
    losses.append(float(other.loss_of(ROWS).detach()))
    assert abs(losses[0] - losses[1]) > 1e-3
