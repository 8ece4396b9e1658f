"""The Trainer of all runs: transformers' own, with this package's loss, batches, checkpoints and evaluation.

What differs from transformers' Trainer:

- Batches hold rows of similar length, in an order that depends on the data seed alone (batches.py).
- Blocks of the model do not see padding (packing.py), and a language model makes no logits where nothing is trained
  (evaluation/next_token.py).
- The loss is the mean over the trained tokens (language models) or rows (classifiers) of the whole optimizer step: over
  gradient accumulation and processes, also where the last batches of an epoch are smaller or fewer.
- Checkpoints hold no pickle and restore a run bit by bit (state.py); validation uses this package's metrics.
- A NaN or infinite loss or gradient stops the run and names the rows.

Private API used here, checked on transformers 5.23: the Trainer's `_run_epoch`, `_get_train_sampler`, `_clip_grad_norm`,
`_save_checkpoint`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler`, `_load_rng_state`, `_load_callback_state`,
`_prepare_inputs`, `_track_num_input_tokens` and `_loss_shifts_labels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from ..adapters.methods import optimizer_groups
from ..adapters.monitor import layer_states, summary
from ..data.examples import Collate
from ..errors import TrainingError
from ..evaluation.next_token import IGNORED, score_next_tokens, takes
from .arguments import training_arguments
from .batches import BucketBatches, lengths_of
from .callbacks import Progress, ValidateAndSave
from .compiling import eagerly, too_small
from .packing import without_padding
from .prepare import Run
from .processes import is_main_process
from .state import restore_optimizer, restore_random, restore_weights, save_checkpoint


class RunTrainer(Trainer):
    """Trains the model of a run.

    Args:
        run: as `prepare` made it.
    """

    def __init__(self, run: Run) -> None:
        config, model = run.config, run.model
        arguments = training_arguments(config, str(run.directory.working))
        validate_and_save = ValidateAndSave(config, run.state, run.parts.validation is not None)
        self.run = run
        self._checkpoint: Any = run.checkpoint
        self._rows: list[int] = []  # of the current batch
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=run.examples["train"],
            data_collator=with_rows(run.collate),
            processing_class=run.processor,
            callbacks=[Progress(run.state, is_main_process()), validate_and_save, run.signals],
        )
        self.remove_callback(PrinterCallback)
        # With True, the Trainer counts the labels of the whole step for `compute_loss`, and leaves the mean to it. The first
        # label of a language model's row is not counted: nothing comes before it.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = config.is_language
        self._router_coefficient = _router_coefficient(model) if config.is_language else 0.0

    def fit(self) -> None:
        """Train, from the run's checkpoint if it has one."""
        self.train(resume_from_checkpoint=None if self._checkpoint is None else str(self._checkpoint.path))

    def create_optimizer(self, model: Any = None) -> Any:
        """As transformers', with a learning rate of their own for B (LoRA+) and for what is trained whole."""
        config, model = self.run.config, self.model if model is None else model
        if self.optimizer is None and (config.method == "lora-plus" or config.head_learning_rate is not None):
            groups = optimizer_groups(
                model, config.method, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
                head_learning_rate=config.head_learning_rate,
            )  # fmt: skip
            optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **settings)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As transformers', but the warm-up leaves a step: a run of one step would otherwise have a learning rate of 0."""
        self.args.warmup_steps = min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1)
        return super().create_scheduler(num_training_steps, optimizer)

    def planned_steps(self) -> int:
        """The number of optimizer steps of the run."""
        return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def loss_of(self, rows: list[int]) -> Tensor:
        """The loss of some training rows as one batch, computed as in training."""
        batch = self.data_collator([self.train_dataset[row] for row in rows])  # pyright: ignore[reportOptionalSubscript, reportArgumentType]
        del batch["row"]
        with self.compute_loss_context_manager():
            return self.compute_loss(self.model, self._prepare_inputs(batch))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The loss of a batch.

        Args:
            model: as wrapped for distributed training.
            inputs: the batch on the model's device.
            return_outputs: not supported.
            num_items_in_batch: trained tokens (of classifiers, rows) of the whole step; None for those of this batch.

        Returns:
            a scalar whose sum over accumulation steps, and mean over processes, is the step's loss.
        """
        assert not return_outputs
        inputs = without_padding(self.run.model.get_base_model(), inputs, call=model)
        labels = inputs["labels"]
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        if not self.run.config.is_language:
            losses = cross_entropy(model(**inputs).logits.float(), labels, reduction="none", ignore_index=IGNORED)
            return self._mean(losses.sum(), (labels != IGNORED).sum(), num_items_in_batch)
        if takes(self.run.model, "use_cache"):
            inputs["use_cache"] = False
        if self._router_coefficient:
            inputs["output_router_logits"] = True
        scored = score_next_tokens(self.run.model, inputs, labels, call=model)
        loss = self._mean(scored.loss.sum(), len(scored.loss), num_items_in_batch)
        if self._router_coefficient:
            # the router's loss is a mean per batch, so it is averaged over the accumulation steps here
            batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self._router_coefficient * scored.output.aux_loss / batches
        return loss

    def _mean(self, total: Tensor, own: Tensor | int, step_items: Tensor | int | None) -> Tensor:
        """This batch's part of the step's mean: its sum of losses over the items of the step, or over its `own`."""
        items = torch.as_tensor(own if step_items is None else step_items, device=total.device).clamp(min=1)
        # the items are those of all processes, and gradients are averaged over these
        return total / items * (1 if step_items is None else self.args.world_size)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of an optimizer step and the number of its items, without rows that another process counts."""
        return super().get_batch_samples(map(self._without_repeated, epoch_iterator), num_batches, device)

    def _without_repeated(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._sampler.repeated is None or batch["row"].tolist() != [self._sampler.repeated]:
            return batch
        return batch | {"labels": torch.full_like(batch["labels"], IGNORED)}

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        repeats = self._sampler.repeated is not None and "attention_mask" in inputs
        if repeats and bool((inputs["labels"] == IGNORED).all()):  # another process counts this row
            inputs = inputs | {"attention_mask": torch.zeros_like(inputs["attention_mask"])}
        super()._track_num_input_tokens(inputs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass.

        Raises:
            TrainingError: a NaN or infinite loss; the rows are named.
        """
        self._rows = [int(row) for row in inputs.pop("row")]
        with eagerly(self.run.config.compile and too_small(len(self._rows), self.args.train_batch_size)):
            loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            self._stop(f"the loss is {loss.item()}")
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            self._stop("the loss is finite, but its gradient is NaN or infinite")
        return norm

    def _stop(self, what: str) -> None:
        step = self.state.global_step + 1
        where = self.run.parts.train.where
        places = "; ".join(where(row) for row in self._rows[:4]) + (" ..." if len(self._rows) > 4 else "")
        rows = ", ".join(str(row + 1) for row in self._rows)
        what = f"{what} at step {step}; its last batch: training rows {rows} ({places})"
        remedy = "look at those rows, lower --learning-rate or --max-grad-norm, or use --dtype float32"
        raise TrainingError(what, where="training", remedy=remedy)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, record the metrics, and keep the weights if they are the best so far."""
        metrics = self.run.validate(self.model)
        self.run.state.add_validation(self.state.global_step, metrics, self.model)
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as transformers does, together with the state of the rule at the steps where that is recorded."""
        if "loss" in logs and self.run.state.rule_due(self.state.global_step):
            logs |= self._record_rule(logs["learning_rate"])
        super().log(logs, *args, **kwargs)

    def _record_rule(self, learning_rate: float) -> dict[str, float]:
        """Record the rule per layer in the run's state; returns the numbers for the log."""
        states = layer_states(self.run.model)
        layers = {name: list(state) for name, state in states.items()}
        self.run.state.rule.append({"step": self.state.global_step, "layers": layers})
        numbers = summary(states, learning_rate)
        for name, state in states.items() if self.run.config.report_to else ():
            named = zip(state._fields, state, strict=True)
            numbers |= {f"layers/{name}/{key}": value for key, value in named if value is not None}
        return numbers

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketBatches:
        args = self.args
        self._sampler = BucketBatches(
            lengths_of(self.train_dataset), args.train_batch_size * args.world_size, self.run.config.data_seed,
            process=args.process_index, processes=args.world_size,
        )  # fmt: skip
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(kwargs["epoch"])  # transformers does not reach a sampler below three wrappers
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        save_checkpoint(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_weights(self, self._checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_optimizer(self, self._checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_random(self._checkpoint, self.args.process_index)

    def _load_callback_state(self) -> None:
        pass  # callbacks keep no state: what they need is in `RunState`


def with_rows(collate: Collate) -> Collate:
    """A collator that adds the examples' row numbers, which `collate` itself leaves out, to the batch."""

    def collated(examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**collate(examples), "row": torch.tensor([example["row"] for example in examples])}

    return collated


def _router_coefficient(model: Any) -> float:
    """The weight of a mixture of experts' load-balancing loss, 0 for other models.

    The model's configuration is set to return that loss if its weight is not 0, whatever it was saved with, as TRL does.
    """
    config = model.get_base_model().config.get_text_config()
    if not hasattr(config, "output_router_logits"):
        return 0.0
    coefficient = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
    config.output_router_logits = coefficient != 0.0
    return coefficient
