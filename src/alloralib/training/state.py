"""The state of a run and how it gets into a checkpoint and back: weights, optimizer, schedule, random numbers, history.

Every process of a distributed run calls these functions; the main process writes. Sharded tensors (FSDP2) are gathered
before they are written and sharded again when they are restored, so a checkpoint does not depend on the number of
processes, except for the random number generators, of which each process has its own.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import CheckpointError
from .base_identity import BaseIdentity, difference, identify
from .checkpoints import STATE, Checkpoint, from_json, path_of, steps_of, to_json, write_checkpoint

Weights = dict[str, Tensor]


@dataclass
class RunState:
    """What a run keeps beside the trainer's own state.

    Attributes:
        data: sha256 of the rows of each part; a run is resumed only on the data that it started with.
        base: the identity of the base model, of which the same holds; None in all processes but the main one.
        rule_every: optimizer steps between two records of the rule.
        history: per optimizer step: step, loss, learning_rate, grad_norm, tokens.
        validation: per validation: step and metrics.
        rule: per record of the rule: step, and per layer its `LayerState`.
        seconds: of training so far.
        best_step: step of the lowest validation loss.
        best: the trained weights of that step.
        finished: no step is left to do.
        chat_date: the day that the chat template is told; None if it shows none.
    """

    data: dict[str, str]
    base: BaseIdentity | None = None
    rule_every: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    rule: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    best_step: int | None = None
    best: Weights = field(default_factory=dict)
    finished: bool = False
    chat_date: str | None = None

    _SAVED = ("data", "history", "validation", "rule", "seconds", "best_step", "finished", "chat_date")

    def rule_due(self, step: int) -> bool:
        """Whether the rule is recorded after this step."""
        return step == 1 or (self.rule_every > 0 and step % self.rule_every == 0)

    def add_validation(self, step: int, metrics: dict[str, float], model: Any) -> None:
        """Record validation metrics, and keep the weights if the loss is the lowest so far."""
        earlier = [entry["loss"] for entry in self.validation]
        self.validation.append({"step": step, **metrics})
        if metrics["loss"] < min(earlier, default=math.inf):
            self.best_step, self.best = step, trained_weights(model)

    @property
    def validations_since_best(self) -> int:
        """The number of validations since the one with the lowest loss."""
        steps = [entry["step"] for entry in self.validation]
        return 0 if self.best_step is None else len(steps) - 1 - steps.index(self.best_step)

    def saved(self) -> dict[str, Any]:
        """The part of it that a checkpoint keeps as JSON."""
        return {name: getattr(self, name) for name in self._SAVED} | {"base": None if self.base is None else asdict(self.base)}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state in a checkpoint.

        Raises:
            CheckpointError: it belongs to other data.
        """
        saved = checkpoint.state["run"]
        if saved["data"] != self.data:
            changed = sorted(name for name in self.data if saved["data"].get(name) != self.data[name])
            what = f"the {' and '.join(changed) or 'training'} rows are not those the run started with"
            remedy = "restore the data files, or start again with --overwrite"
            raise CheckpointError(what, where=str(checkpoint.path), remedy=remedy)
        for name in self._SAVED:
            setattr(self, name, saved.get(name, getattr(self, name)))  # 0.1.0 had no chat_date
        self.best = dict(checkpoint.tensors.get("best", {}))

    def set_base(self, name: str, path: str, checkpoint: Checkpoint | None) -> None:
        """Identify the base model, which has been loaded. Only the main process calls it: all weights are read.

        Raises:
            CheckpointError: the checkpoint belongs to another base. A checkpoint without an identity is not checked.
        """
        self.base = identify(name, path)
        saved = None if checkpoint is None else BaseIdentity.of(checkpoint.state["run"].get("base"), str(checkpoint.path))
        found = None if saved is None else difference(self.base, saved)
        if found is not None:
            assert checkpoint is not None
            what = f"the base model {path} is not the one the run started with: {found}"
            remedy = "restore the model, or start again with --overwrite"
            raise CheckpointError(what, where=str(checkpoint.path), remedy=remedy)


def knows_base(checkpoints: Path) -> bool:
    """Whether the newest checkpoint holds the identity of its base model, so that the base may have another path by now."""
    try:
        newest = path_of(checkpoints, steps_of(checkpoints)[-1])
        return json.loads((newest / STATE).read_text(encoding="utf-8"))["run"].get("base") is not None
    except (IndexError, OSError, ValueError, KeyError):
        return False


def trained_weights(model: Any) -> Weights:
    """Name and full value of every trained parameter: a copy, on the CPU."""
    return {name: _full(p).detach().cpu().clone() for name, p in _trained(model).items()}


def set_weights(model: Any, weights: Weights) -> None:
    """Put weights from `trained_weights` back, bit by bit.

    Raises:
        CheckpointError: they belong to another adapter.
    """
    trained = _trained(model)
    if trained.keys() != weights.keys() or any(trained[name].shape != w.shape for name, w in weights.items()):
        raise CheckpointError("the checkpoint's weights are not those of this adapter", remedy="start again with --overwrite")
    with torch.no_grad():
        for name, value in weights.items():
            trained[name].copy_(_as(value, trained[name]))


def save_checkpoint(trainer: Any) -> None:
    """Write a checkpoint of everything that the next step depends on.

    Args:
        trainer: a `RunTrainer`.
    """
    run, step = trainer.run, trainer.state.global_step
    tensors: dict[str, Tensor] = {}
    # all processes gather sharded tensors and their random states
    optimizer = to_json(tree_map(_full, trainer.optimizer.state_dict()), tensors, "optimizer")
    groups = {"adapter": trained_weights(trainer.model), "optimizer": tensors}
    generators = gather_object([random_state()])
    if not trainer.args.should_save:
        return
    random_states: list[Any] = []
    for rank, generator in enumerate(generators):
        groups[f"rng-{rank}"] = {}
        random_states.append(to_json(generator, groups[f"rng-{rank}"], "random"))
    stopping = trainer.control.should_training_stop and not run.signals.stopping
    run.state.finished = run.state.finished or bool(stopping)
    schedule = to_json(trainer.lr_scheduler.state_dict(), tensors, "schedule")
    state = {
        "step": step,
        "run": run.state.saved(),
        "optimizer": optimizer,
        "schedule": schedule,
        "processes": trainer.args.world_size,
        "random": random_states,
    }
    if run.state.best:
        groups["best"] = run.state.best
    write_checkpoint(run.directory.checkpoints, step, groups, state, {TRAINER_STATE_NAME: _trainer_state(trainer)})


def restore_weights(trainer: Any, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's trained weights into the trainer's model."""
    set_weights(trainer.model, checkpoint.tensors["adapter"])


def restore_optimizer(trainer: Any, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's optimizer and schedule into the trainer's."""
    state, tensors = checkpoint.state, checkpoint.tensors["optimizer"]
    saved = from_json(state["optimizer"], tensors)
    params = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for index, entries in saved["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == params[index].shape:
                entries[key] = _as(value, params[index])
    trainer.optimizer.load_state_dict(saved)
    trainer.lr_scheduler.load_state_dict(from_json(state["schedule"], tensors))


def restore_random(checkpoint: Checkpoint, rank: int) -> None:
    """Restore the random number generators of one process; a process that the checkpoint does not know keeps its own."""
    if rank < checkpoint.state["processes"]:
        set_random(from_json(checkpoint.state["random"][rank], checkpoint.tensors[f"rng-{rank}"]))


def random_state() -> dict[str, Any]:
    """The state of every random number generator that training draws from."""
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()} | cuda


def set_random(state: dict[str, Any]) -> None:
    """Restore a state from `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _trainer_state(trainer: Any) -> str:
    state = {key: value for key, value in asdict(trainer.state).items() if key != "stateful_callbacks"}
    return json.dumps(state | {"log_history": [], "stateful_callbacks": {}})


def _trained(model: Any) -> dict[str, Tensor]:
    return {name.replace("_orig_mod.", ""): p for name, p in model.named_parameters() if p.requires_grad}


def _full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _as(value: Tensor, like: Tensor) -> Tensor:
    """A full tensor, on the device of `like` and sharded as it is."""
    data = like.data if isinstance(like, torch.nn.Parameter) else like
    if isinstance(data, DTensor):
        return distribute_tensor(value.to(data.device), data.device_mesh, data.placements)
    return value.to(data.device)
