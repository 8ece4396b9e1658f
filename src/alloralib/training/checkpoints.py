"""Checkpoints on disk: safetensors and JSON, written atomically, verified before they are used.

    checkpoints/step-00000120/
        NAME.safetensors     tensors, one file per group (adapter, optimizer, rng-0, ...)
        state.json           everything else
        manifest.json        sha256 of every file above

There is no pickle in it: a checkpoint from somebody else can hold numbers, but nothing that runs.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..files import sha256, sync

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
KEPT = 2
"""Checkpoints that are kept; older ones are deleted."""
_PREFIX = "step-"

Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, read and verified once.

    Attributes:
        path: its directory.
        step: optimizer steps done.
        tensors: by file (without the suffix) and name.
        state: everything else.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def steps_of(root: Path) -> list[int]:
    """The steps at which there is a checkpoint, damaged ones included, in ascending order."""
    if not root.is_dir():
        return []
    names = (p.name.removeprefix(_PREFIX) for p in root.glob(f"{_PREFIX}*"))
    return sorted(int(name) for name in names if name.isdigit())


def path_of(root: Path, step: int) -> Path:
    """The directory of the checkpoint at a step."""
    return root / f"{_PREFIX}{step:08d}"


def write_checkpoint(
    root: Path, step: int, tensors: Tensors, state: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> Path:
    """Write a checkpoint atomically: if the process is stopped at any point, the previous checkpoint is still there.

    Args:
        root: the directory of all checkpoints.
        step: optimizer steps done.
        tensors: by file (without the suffix) and name.
        state: what JSON can hold.
        files: further text files, by name.

    Returns:
        the checkpoint's directory. All but the newest `KEPT` checkpoints are deleted.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = path_of(root, step)
    partial = root / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, group in tensors.items():
        # a copy of each: safetensors refuses tensors that share memory, and a view would save its whole storage
        save_file({key: t.detach().cpu().contiguous().clone() for key, t in group.items()}, partial / f"{name}.safetensors")
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    for name, text in (files or {}).items():
        (partial / name).write_text(text, encoding="utf-8")
    digests = {path.name: sha256(path) for path in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "sha256": digests}), encoding="utf-8")
    for path in partial.iterdir():
        sync(path)
    sync(partial)
    if final.exists():  # a step that is done again after a resume
        shutil.rmtree(final)
    partial.rename(final)
    sync(root)
    for old in steps_of(root)[:-KEPT]:
        shutil.rmtree(path_of(root, old), ignore_errors=True)
    return final


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every file of it.

    Raises:
        CheckpointError: a file is missing, truncated or changed, or the format is of another version.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, step, digests = manifest["format"], int(manifest["step"]), dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path / MANIFEST, error) from None
    if version != FORMAT:
        raise CheckpointError(f"format {version!r} is not {FORMAT}", where=str(path), remedy="update alloralib")
    for name, digest in digests.items():
        try:
            if sha256(path / name) != digest:
                raise _damaged(path / name, "its sha256 is not the one in the manifest")
        except OSError as error:
            raise _damaged(path / name, error) from None
    try:
        tensors = {Path(name).stem: load_file(path / name) for name in digests if name.endswith(".safetensors")}
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, error) from None
    return Checkpoint(path, step, tensors, state)


def read_latest(root: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint, None if there are none. Damaged ones are reported on standard error and skipped.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    steps = steps_of(root)
    for step in reversed(steps):
        try:
            return read_checkpoint(path_of(root, step))
        except CheckpointError as error:
            print(f"allora: warning: {error.where}: {error.what}; using the checkpoint before it", file=sys.stderr)
    if steps:
        raise CheckpointError("all checkpoints are damaged", where=str(root), remedy="start again with --overwrite")
    return None


def to_json(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A nested state as JSON. Its tensors and arrays are put into `tensors`, under names that start with `name`.

    Raises:
        CheckpointError: something that neither JSON nor safetensors can hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"": "tensor", "key": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value)
        return {"": "array", "key": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        items = [to_json(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"": "tuple", "items": items}
    if isinstance(value, dict):
        return {"": "dict", "pairs": [[key, to_json(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    what = f"{name} is a {type(value).__name__}, which a checkpoint without pickle cannot hold"
    raise CheckpointError(what, remedy="use another --optimizer or --schedule")


def from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, list):
        return [from_json(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value[""]
    if kind == "tensor":
        return tensors[value["key"]]
    if kind == "array":
        return tensors[value["key"]].numpy()
    if kind == "tuple":
        return tuple(from_json(item, tensors) for item in value["items"])
    return {key: from_json(item, tensors) for key, item in value["pairs"]}


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"damaged checkpoint ({reason})", where=str(path), remedy="--resume uses the one before it")
