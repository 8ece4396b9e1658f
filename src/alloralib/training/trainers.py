"""transformers' Trainer and TRL's SFTTrainer, set up from a run configuration.

What the two share is `RunTrainer`: batches of similar length in an order that depends on the data seed alone, checkpoints
without pickle that a run goes on from bit by bit, a stop at the first loss that is no number, validation by our own
metrics, and the rule's own history.

Foreign private API used here: the Trainer methods that its loop calls and that are overridden below (`_run_epoch`,
`_save_checkpoint`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler`, `_load_rng_state`, `_clip_grad_norm`,
`_get_train_sampler`), and TRL's `_prepare_dataset`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import OptimizerNames
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage] (its lazy exports)

from ..adapters.methods import optimizer_groups
from ..errors import ConfigError, TrainingError, did_you_mean
from .batches import BucketBatches, lengths_of
from .compiling import eagerly, too_small
from .config import DEFAULT_EPOCHS, RunConfig
from .head import score_labels_only
from .packing import without_padding
from .processes import on_cpu
from .state import RunState, load_model, load_optimizer, load_random, snapshot


class RunTrainer:
    """What our two trainers share; in front of transformers' class.

    Attributes:
        plain_collator: without the row numbers, for evaluation.
        run: the part of the state that the run itself keeps (history, best weights), set after construction.
        validate: the validation metrics of the model as it is, with a key `loss`; None without validation rows.
        where: how to find training row i again, for errors.
        rule_metrics: looks at the rule, notes what it sees per layer, and gives what goes into the log.
        interrupted: whether a signal ends the run early.
        compiles: whether blocks of the model are compiled.
    """

    interrupted = False
    compiles = False
    plain_collator: Callable[[list[Any]], Any]
    run: RunState
    validate: Callable[[], dict[str, float]] | None
    where: Callable[[int], str]
    rule_metrics: Callable[[], dict[str, float]]
    # of transformers' Trainer
    args: Any
    state: Any
    model: Any
    train_dataset: Any
    accelerator: Any
    control: Any
    callback_handler: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketBatches:
        args = self.args
        self._sampler = BucketBatches(
            lengths_of(self.train_dataset), args.train_batch_size * args.world_size, args.data_seed,
            process=args.process_index, processes=args.world_size,
        )  # fmt: skip
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(kwargs["epoch"])  # transformers reaches a sampler under two wrappers, not under three
        super()._run_epoch(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass; the batch's row numbers are kept for an error."""
        self._rows = [int(row) for row in inputs.pop("row")]
        with eagerly(self.compiles and too_small(len(self._rows), self.args.train_batch_size)):
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if not torch.isfinite(loss):
            self._stop(f"the loss is {loss.item()}")
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # pyright: ignore[reportAttributeAccessIssue]
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            self._stop("the loss is finite and its gradient is not")
        return norm

    def _stop(self, what: str) -> None:
        step = self.state.global_step + 1
        places = "; ".join(self.where(row) for row in self._rows[:4]) + (" ..." if len(self._rows) > 4 else "")
        rows = ", ".join(str(row + 1) for row in self._rows)
        raise TrainingError(
            f"{what} at step {step}; its last batch: training rows {rows} ({places})",
            where="training",
            remedy="look at those rows, lower --learning-rate or --max-grad-norm, or use --dtype float32",
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The validation metrics, into the history; keeps the best weights."""
        assert self.validate is not None
        metrics = self.validate()
        self.run.validated(self.state.global_step, metrics, self.model)
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """transformers' log, with what the rule does where that is due."""
        if "loss" in logs and self.run.rule_due(self.state.global_step):
            logs |= self.rule_metrics()
        super().log(logs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        snapshot(self, self.run)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random(Path(checkpoint), self.args.process_index)

    def _load_callback_state(self) -> None:
        pass  # ours is in `run`; the control's is made anew


class ClassificationTrainer(RunTrainer, Trainer):
    """transformers' Trainer as a run needs it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Classifiers take any keyword and give the mean over their own rows all the same. Trainer believes that they have
        # divided by the rows of all micro-batches and processes, and would scale loss and gradient by both numbers.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The mean over the rows of all processes, also where one has fewer than another."""
        inputs = without_padding(self.model.get_base_model(), inputs, call=model)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.args.world_size == 1:
            return loss
        rows = torch.tensor(float(len(inputs["labels"])), device=self.args.device)
        return loss * rows / self.accelerator.gather(rows).mean()


class LanguageTrainer(RunTrainer, SFTTrainer):
    """TRL's SFTTrainer as a run needs it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        score_labels_only(self.model.get_base_model())


def with_rows(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """A collator that hands on the examples' row numbers, which `collate` itself leaves out."""

    def collated(examples: list[Any]) -> Any:
        return {**collate(examples), "row": torch.tensor([example["row"] for example in examples])}

    return collated


def check_optimizer(config: RunConfig) -> None:
    """Raise `ConfigError` where transformers knows no optimizer of that name."""
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
        "include_num_input_tokens_seen": "no" if config.task == "image-classification" else "non_padding",
        "save_strategy": "no",  # our callback says when, and our snapshot how
        "report_to": config.report_to or "none",
        "disable_tqdm": True,
        "label_names": ["labels"],
        "remove_unused_columns": False,
        "use_cpu": on_cpu(),
        "bf16": False,  # the frozen weights' own dtype is the choice (`dtype`)
    }


def make_trainer(
    config: RunConfig, model: Any, processor: Any, train: Any, collate: Callable[[list[Any]], Any] | None, directory: str,
    callbacks: list[Any],
) -> Any:  # fmt: skip
    """The trainer of a run: Trainer for classification, SFTTrainer for language modelling.

    Args:
        model: with its adapter.
        processor: tokenizer or image processor.
        train: a dataset with a column `row`; for language modelling with input_ids and labels, or in TRL's form, which it
            tokenizes.
        collate: for classification; TRL's trainer brings its own.
        directory: for whatever the trainer wants to write.
    """
    arguments = _arguments(config, directory)
    optimizer = None
    if config.is_language:
        args: Any = SFTConfig(
            **arguments,
            max_length=config.max_length,
            # said, because TRL would conclude it from the training rows, which may have come tokenized
            completion_only_loss=True,
            dataset_kwargs={"skip_prepare_dataset": "labels" in train.column_names},
        )
        cls: Any = LanguageTrainer
    else:
        args, cls = TrainingArguments(**arguments), ClassificationTrainer
    if config.method == "lora-plus":
        groups = optimizer_groups(model, config.method, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        optimizer_cls, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = optimizer_cls(groups, **settings)
    trainer = cls(
        model=model,
        args=args,
        train_dataset=train,
        data_collator=collate,
        processing_class=processor,
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )
    trainer.compiles = config.compile
    trainer.remove_callback(PrinterCallback)
    if config.is_language:
        trainer.train_dataset = _columns(trainer.train_dataset)
    trainer.plain_collator = trainer.data_collator
    trainer.data_collator = with_rows(trainer.data_collator)
    return trainer


def tokenize(trainer: Any, processor: Any, dataset: Any, name: str, *, max_length: int | None) -> Any:
    """A language data set as TRL's trainer tokenizes and masks it: input_ids, labels and row.

    Args:
        name: for the progress line.
        max_length: where rows are cut; None does not.
    """
    args = copy.copy(trainer.args)
    args.max_length = max_length
    return _columns(trainer._prepare_dataset(dataset, processor, args, False, None, name))


def _columns(dataset: Any) -> Any:
    return dataset.select_columns(["input_ids", "labels", "row"])
