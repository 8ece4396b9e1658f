"""The state of a run, between memory and a checkpoint: weights, optimizer, schedule, random numbers, history.

Every process of a distributed run calls these functions; the first one writes. Sharded tensors (FSDP2) are gathered to
full ones before they are written and cut again when they are read, so a checkpoint does not depend on the number of
processes (but for random numbers, which each process has its own of).
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import CheckpointError
from .checkpoints import freeze, read_checkpoint, thaw, write_checkpoint

Weights = dict[str, Tensor]


@dataclass
class RunState:
    """What the run keeps beside the trainer's own state.

    Attributes:
        checkpoints: the directory of all checkpoints.
        data: sha256 by part; a run goes on only with the data that it began with.
        rule_every: optimizer steps between looks at the rule.
        history: per optimizer step: step, loss, learning_rate, grad_norm, tokens.
        validation: per look at the validation rows: step and metrics.
        rule: per look at the rule: step, and per layer what `adapters.monitor` gives.
        best_step: step of the lowest validation loss.
        best: the trained weights of that step.
        finished: no step is left to do.
    """

    checkpoints: Path
    data: dict[str, str]
    rule_every: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    rule: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    best_step: int | None = None
    best: Weights = field(default_factory=dict)
    finished: bool = False

    _SAVED = ("data", "history", "validation", "rule", "seconds", "best_step", "finished")

    def rule_due(self, step: int) -> bool:
        """Whether the rule is looked at after this step."""
        return step == 1 or (self.rule_every > 0 and step % self.rule_every == 0)

    def validated(self, step: int, metrics: dict[str, float], model: Any) -> None:
        """Note validation metrics, and keep the weights if they are the best so far."""
        self.validation.append({"step": step, **metrics})
        losses = [entry["loss"] for entry in self.validation]
        if losses[-1] <= min(losses) and losses.index(losses[-1]) == len(losses) - 1:
            self.best_step, self.best = step, trained_weights(model)

    @property
    def looks_since_best(self) -> int:
        """Looks at the validation rows since the best one."""
        steps = [entry["step"] for entry in self.validation]
        return 0 if self.best_step is None else len(steps) - 1 - steps.index(self.best_step)

    def described(self) -> dict[str, Any]:
        """What a checkpoint keeps of it as JSON."""
        return {name: getattr(self, name) for name in self._SAVED}

    def restore(self, checkpoint: Path) -> int:
        """Take the state back from a checkpoint.

        Returns:
            the number of steps done.

        Raises:
            CheckpointError: it belongs to other data.
        """
        parts, state = read_checkpoint(checkpoint)
        kept = state["run"]
        if kept["data"] != self.data:
            changed = sorted(name for name in self.data if kept["data"].get(name) != self.data[name])
            raise CheckpointError(
                f"the {' and '.join(changed) or 'training'} rows are not those the run began with",
                where=str(checkpoint),
                remedy="restore the data files, or start again with --overwrite",
            )
        for name in self._SAVED:
            setattr(self, name, kept[name])
        self.best = dict(parts.get("best", {}))
        return int(state["step"])


def trained_weights(model: Any) -> Weights:
    """Name and full value of every parameter that is trained, on the CPU; a copy."""
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


def snapshot(trainer: Any, run: RunState) -> None:
    """Write a checkpoint of everything that the next step depends on."""
    tensors: dict[str, Tensor] = {}
    optimizer = freeze(_gathered(trainer.optimizer.state_dict()), tensors, "optimizer")
    adapter = trained_weights(trainer.model)
    randoms = _all_random(trainer)
    if not trainer.args.should_save:
        return
    run.finished = run.finished or bool(trainer.control.should_training_stop and not trainer.interrupted)
    schedule = freeze(trainer.lr_scheduler.state_dict(), tensors, "schedule")
    state = {
        "step": trainer.state.global_step,
        "run": run.described(),
        "optimizer": optimizer,
        "schedule": schedule,
        "processes": trainer.args.world_size,
        "random": [frozen for frozen, _ in randoms],
    }
    parts = {"adapter": adapter, "optimizer": tensors}
    parts |= {f"rng-{rank}": kept for rank, (_, kept) in enumerate(randoms)}
    if run.best:
        parts["best"] = run.best
    write_checkpoint(run.checkpoints, trainer.state.global_step, parts, state, {TRAINER_STATE_NAME: _trainer_state(trainer)})


def load_model(trainer: Any, checkpoint: Path) -> None:
    """The trained weights of a checkpoint, into the trainer's model."""
    set_weights(trainer.model, read_checkpoint(checkpoint)[0]["adapter"])


def load_optimizer(trainer: Any, checkpoint: Path) -> None:
    """Optimizer and schedule of a checkpoint, into the trainer's."""
    parts, state = read_checkpoint(checkpoint)
    saved = thaw(state["optimizer"], parts["optimizer"])
    params = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for index, entries in saved["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == params[index].shape:
                entries[key] = _as(value, params[index])
    trainer.optimizer.load_state_dict(saved)
    trainer.lr_scheduler.load_state_dict(thaw(state["schedule"], parts["optimizer"]))


def load_random(checkpoint: Path, rank: int) -> None:
    """The random number generators of one process, as they were."""
    parts, state = read_checkpoint(checkpoint)
    if rank < state["processes"]:
        set_random(thaw(state["random"][rank], parts[f"rng-{rank}"]))


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from."""
    state: dict[str, Any] = {
        "python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()
    }  # fmt: skip
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random(state: dict[str, Any]) -> None:
    """Put the generators back to a state from `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _all_random(trainer: Any) -> list[tuple[Any, dict[str, Tensor]]]:
    kept: dict[str, Tensor] = {}
    frozen = freeze(random_state(), kept, "random")
    if trainer.args.world_size == 1:
        return [(frozen, kept)]
    device, size = trainer.args.device, trainer.args.world_size
    words = torch.frombuffer(bytearray(json.dumps(frozen).encode()), dtype=torch.uint8)
    blob = torch.frombuffer(bytearray(save(kept | {"": words})), dtype=torch.uint8).to(device)  # bytes, and no pickle
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(size)]
    torch.distributed.all_gather(lengths, torch.tensor([len(blob)], device=device))
    longest = max(int(length) for length in lengths)
    blobs = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(size)]
    torch.distributed.all_gather(blobs, torch.nn.functional.pad(blob, (0, longest - len(blob))))
    gathered = [load(bytes(b[: int(n)].cpu().numpy())) for b, n in zip(blobs, lengths, strict=True)]
    return [(json.loads(bytes(tensors.pop("").numpy())), tensors) for tensors in gathered]


def _trainer_state(trainer: Any) -> str:
    state = {key: value for key, value in asdict(trainer.state).items() if key != "stateful_callbacks"}
    return json.dumps(state | {"log_history": [], "stateful_callbacks": {}})


def _trained(model: Any) -> dict[str, Tensor]:
    return {name.replace("_orig_mod.", ""): p for name, p in model.named_parameters() if p.requires_grad}


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _as(value: Tensor, like: Tensor) -> Tensor:
    """A full tensor in the sharding and on the device of `like`."""
    data = like.data if isinstance(like, torch.nn.Parameter) else like
    if isinstance(data, DTensor):
        return distribute_tensor(value.to(data.device), data.device_mesh, data.placements)
    return value.to(data.device)


def _gathered(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _full(value)
    if isinstance(value, dict):
        return {key: _gathered(item) for key, item in value.items()}
    return [_gathered(item) for item in value] if isinstance(value, list) else value
