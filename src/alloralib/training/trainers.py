"""transformers' Trainer and TRL's SFTTrainer, set up from a run configuration, with batches of similar length."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.training_args import OptimizerNames
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage] (its lazy exports)

from ..adapters.methods import optimizer_groups
from ..errors import ConfigError, did_you_mean
from .config import DEFAULT_EPOCHS, RunConfig


class Bucketed:
    """Rows of similar length in one batch, in an order drawn from a generator of its own.

    transformers' sampler for this draws from torch's global generator, which the adapter's initial values and dropout
    draw from as well: the order of the data would depend on the method.
    """

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        return LengthGroupedSampler(
            self.args.train_batch_size,
            lengths=[len(ids) for ids in self.train_dataset["input_ids"]],
            generator=torch.Generator().manual_seed(self.args.data_seed),
        )


class ClassificationTrainer(Bucketed, Trainer):
    """transformers' Trainer with length buckets."""


class LanguageTrainer(Bucketed, SFTTrainer):
    """TRL's SFTTrainer with length buckets."""


class Progress(TrainerCallback):
    """The live line on standard error, and the history that goes into the record.

    Attributes:
        history: per optimiser step: step, loss, learning_rate, grad_norm, tokens (seen so far, padding not counted).
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self._bar: Any = None
        self._started = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the bar and the clock."""
        self._bar = tqdm(total=state.max_steps, desc="training", unit="step", file=sys.stderr, dynamic_ncols=True)
        self._started = time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """One optimiser step further: loss and speed."""
        if logs is None or "loss" not in logs:
            return
        tokens = state.num_input_tokens_seen
        entry = {"step": state.global_step, "tokens": tokens}
        entry |= {key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm") if key in logs}
        self.history.append(entry)
        speed = tokens / max(time.perf_counter() - self._started, 1e-9)
        self._bar.set_postfix_str(f"loss {logs['loss']:.4f}, {speed:,.0f} tokens/s", refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def check_optimizer(config: RunConfig) -> None:
    """Raise `ConfigError` where transformers knows no optimiser of that name."""
    known = [str(o.value) for o in OptimizerNames]
    if config.optimizer not in known:
        raise ConfigError(f"unknown optimizer {config.optimizer!r}", remedy=did_you_mean(config.optimizer, known))


def _arguments(config: RunConfig, directory: str) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "num_train_epochs": config.epochs or DEFAULT_EPOCHS,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": config.optimizer,
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": config.data_seed,
        "data_seed": config.data_seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "label_names": ["labels"],
        "bf16": False,  # the frozen weights' own dtype is the choice (`dtype`)
    }


def make_trainer(
    config: RunConfig, model: Any, tokenizer: Any, train: Any, evaluation: Any, directory: str, progress: Progress
) -> Any:
    """The trainer of a run: Trainer for classification, SFTTrainer for language modelling.

    Args:
        model: with its adapter.
        train, evaluation: datasets; for language modelling in TRL's form, which it tokenises.
        directory: for whatever the trainer wants to write.
    """
    arguments = _arguments(config, directory)
    if config.task == "classification":
        from transformers import DataCollatorWithPadding

        args: Any = TrainingArguments(**arguments)
        cls: Any = ClassificationTrainer
        extra = {"data_collator": DataCollatorWithPadding(tokenizer)}
    else:
        args = SFTConfig(**arguments, max_length=config.max_length)
        cls, extra = LanguageTrainer, {}
    optimizer = None
    groups = optimizer_groups(config.method, model, config.learning_rate, config.weight_decay)
    if groups is not None:
        optimizer_cls, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = optimizer_cls(groups, **settings)
    trainer = cls(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        callbacks=[progress],
        optimizers=(optimizer, None),
        **extra,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
