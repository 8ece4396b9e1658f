"""What happens between steps: the live line, the history, when to validate and save, and a stop by signal."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .config import DEFAULT_CHECKPOINTS, RunConfig
from .state import RunState

_KEPT = ("loss", "learning_rate", "grad_norm")


class Progress(TrainerCallback):
    """The live line on standard error, and the history that goes into the record.

    Args:
        run: `run.history` gets, per optimizer step, step, loss, learning_rate, grad_norm and tokens (seen so far,
            padding not counted).
        shown: whether this process draws the line.
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
        """One optimizer step further: loss and speed."""
        if logs is None or "loss" not in logs:
            return
        elapsed = time.perf_counter() - self._started
        tokens = state.num_input_tokens_seen
        self.run.seconds = self._before + elapsed
        entry = {"step": state.global_step, "tokens": tokens}
        self.run.history.append(entry | {key: float(logs[key]) for key in _KEPT if key in logs})
        speed = (tokens - self._first_tokens) / max(elapsed, 1e-9)
        shown = f"loss {logs['loss']:.4f}" + (f", {speed:,.0f} tokens/s" if tokens else "")
        if self.run.validation:
            shown += f", validation loss {self.run.validation[-1]['loss']:.4f}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class Cadence(TrainerCallback):
    """When to validate, to save, and to stop early; all by the number of steps, so a resumed run does the same."""

    def __init__(self, config: RunConfig, run: RunState, validates: bool) -> None:
        self.config, self.run, self.validates = config, run, validates

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Turn shares of the run into steps."""
        tenth = max(1, state.max_steps // DEFAULT_CHECKPOINTS)
        self._save = self.config.checkpoint_every or tenth
        self.run.rule_every = self.config.rule_every or tenth
        epoch = max(1, round(state.max_steps / state.num_train_epochs)) if state.num_train_epochs else tenth
        self._evaluate = self.config.evaluate_every or min(epoch, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what comes before the next step."""
        step, last = state.global_step, state.global_step >= state.max_steps
        control.should_evaluate = self.validates and (step % self._evaluate == 0 or last)
        control.should_save = step % self._save == 0 or last

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop where the validation loss has not fallen for `patience` looks."""
        if self.config.patience is not None and self.run.looks_since_best >= self.config.patience:
            control.should_training_stop = control.should_save = True


class Interruption(TrainerCallback):
    """Ctrl-C and SIGTERM: finish the step, save a checkpoint, stop. A second one stops at once.

    Attributes:
        received: the signal's number, 0 for none.
        trainer: told when a signal ends the run.
    """

    trainer: Any = None

    def __init__(self) -> None:
        self.received = 0
        self._training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread: whoever runs us there has signals of their own
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
        print("\nallora: stopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """From here on there is something to save."""
        self._training = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop if a signal came."""
        if self.received and state.global_step < state.max_steps:
            self.trainer.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What comes now can be done again."""
        self._training = False
