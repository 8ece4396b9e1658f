"""Trainer callbacks: the progress bar and history, when to validate and save, and stopping by signal."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .config import DEFAULT_CHECKPOINTS, RunConfig
from .state import RunState

_HISTORY = ("loss", "learning_rate", "grad_norm")


class Progress(TrainerCallback):
    """The progress bar on standard error, and the history that goes into the record.

    Args:
        run: gets an entry in `history` per optimizer step: step, loss, learning_rate, grad_norm and tokens (so far,
            without padding).
        shown: whether this process draws the bar.
    """

    def __init__(self, run: RunState, shown: bool) -> None:
        self.run, self.shown = run, shown

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the bar and the clock."""
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", unit="step", file=sys.stderr,
            dynamic_ncols=True, disable=not self.shown,
        )  # fmt: skip
        self._started, self._before = time.perf_counter(), self.run.seconds
        self._first_tokens = state.num_input_tokens_seen

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Record a step, and show its loss and the speed."""
        if logs is None or "loss" not in logs:
            return
        elapsed = time.perf_counter() - self._started
        tokens = state.num_input_tokens_seen
        self.run.seconds = self._before + elapsed
        entry = {"step": state.global_step, "tokens": tokens}
        self.run.history.append(entry | {key: float(logs[key]) for key in _HISTORY if key in logs})
        speed = (tokens - self._first_tokens) / max(elapsed, 1e-9)
        shown = f"loss {logs['loss']:.4f}" + (f", {speed:,.0f} tokens/s" if tokens else "")
        if self.run.validation:
            shown += f", validation loss {self.run.validation[-1]['loss']:.4f}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar."""
        self._bar.close()


class ValidateAndSave(TrainerCallback):
    """Decides after which steps to validate, to save, and to stop early. All by step number, so a resumed run does the same."""

    def __init__(self, config: RunConfig, run: RunState, validates: bool) -> None:
        self.config, self.run, self.validates = config, run, validates

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Turn shares of the run into steps."""
        tenth = max(1, state.max_steps // DEFAULT_CHECKPOINTS)
        self._save_every = self.config.checkpoint_every or tenth
        self.run.rule_every = self.config.rule_every or tenth
        epoch = -(-len(kwargs["train_dataloader"]) // args.gradient_accumulation_steps)
        self._validate_every = self.config.evaluate_every or min(epoch, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what is done before the next step."""
        step, last = state.global_step, state.global_step >= state.max_steps
        control.should_evaluate = self.validates and (step % self._validate_every == 0 or last)
        control.should_save = step % self._save_every == 0 or last

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop if the validation loss has not improved for `patience` validations."""
        if self.config.patience is not None and self.run.validations_since_best >= self.config.patience:
            control.should_training_stop = control.should_save = True


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM: finish the step, save a checkpoint, stop. A second signal stops at once.

    A context manager: the signals are handled within its `with` block.

    Attributes:
        received: the signal's number, 0 for none.
        stopping: whether a signal ends the training before its last step.
    """

    def __init__(self) -> None:
        self.received = 0
        self.stopping = False
        self._training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread: the caller handles signals
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        first = not self.received
        self.received = number
        if not self._training or not first:
            raise KeyboardInterrupt(number)
        print("\nallora: stopping after this step, with a checkpoint; again to stop at once", file=sys.stderr)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """From now on there is something to save."""
        self._training = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop if a signal came."""
        if self.received and state.global_step < state.max_steps:
            self.stopping = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """From now on a resumed run repeats what a signal interrupts."""
        self._training = False
