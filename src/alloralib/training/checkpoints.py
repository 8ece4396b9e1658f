"""Checkpoints on disk: safetensors and JSON, written at once or not at all, checked before they are used.

    checkpoints/step-00000120/
        NAME.safetensors     tensors, one file per part (adapter, optimizer, rng-0, ...)
        state.json           everything else
        manifest.json        sha256 of every file above

No pickle: a checkpoint from somebody else can hold numbers and nothing that runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
KEPT = 2
_PREFIX = "step-"

Parts = Mapping[str, Mapping[str, Tensor]]


def steps_of(root: Path) -> list[int]:
    """The steps at which there is a checkpoint, damaged ones included, ascending."""
    if not root.is_dir():
        return []
    names = (p.name.removeprefix(_PREFIX) for p in root.glob(f"{_PREFIX}*"))
    return sorted(int(name) for name in names if name.isdigit())


def path_of(root: Path, step: int) -> Path:
    """The directory of the checkpoint at a step."""
    return root / f"{_PREFIX}{step:08d}"


def write_checkpoint(
    root: Path, step: int, parts: Parts, state: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> Path:
    """Write a checkpoint; stopped at any point, what was there before is still there.

    Args:
        root: the directory of all checkpoints.
        step: optimizer steps done.
        parts: tensors by file and name.
        state: what JSON can say.
        files: further text files, by name.

    Returns:
        its directory. The last `KEPT` checkpoints are kept.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = path_of(root, step)
    scratch = root / f".{final.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name, tensors in parts.items():
        # a copy of each: safetensors refuses tensors that share memory, and a view would drag its storage along
        save_file({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}, scratch / f"{name}.safetensors")
    (scratch / STATE).write_text(json.dumps(state), encoding="utf-8")
    for name, text in (files or {}).items():
        (scratch / name).write_text(text, encoding="utf-8")
    digests = {path.name: _sha256(path) for path in sorted(scratch.iterdir())}
    (scratch / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "sha256": digests}), encoding="utf-8")
    for path in scratch.iterdir():
        _sync(path)
    _sync(scratch)
    if final.exists():  # a step done again after a resume
        shutil.rmtree(final)
    scratch.rename(final)
    _sync(root)
    for old in steps_of(root)[:-KEPT]:
        shutil.rmtree(path_of(root, old), ignore_errors=True)
    return final


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file and name, and the state.

    Raises:
        CheckpointError: a file is missing, cut, or not what was written.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        digests: dict[str, str] = manifest["sha256"]
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"format {manifest['format']!r} is not {FORMAT}", where=str(path), remedy="update alloralib")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path / MANIFEST, error) from None
    for name, digest in digests.items():
        try:
            right = _sha256(path / name) == digest
        except OSError as error:
            raise _damaged(path / name, error) from None
        if not right:
            raise _damaged(path / name, "its sha256 is not the one that was written")
    try:
        parts = {Path(name).stem: load_file(path / name) for name in digests if name.endswith(".safetensors")}
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, error) from None
    return parts, state


def latest(root: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named on standard error and passed over.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    steps = steps_of(root)
    for step in reversed(steps):
        try:
            read_checkpoint(path_of(root, step))
        except CheckpointError as error:
            print(f"allora: warning: {error.where}: {error.what}; using the checkpoint before it", file=sys.stderr)
        else:
            return path_of(root, step)
    if steps:
        raise CheckpointError("no checkpoint is whole", where=str(root), remedy="start again with --overwrite")
    return None


def freeze(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A nested state as JSON; its tensors and arrays go into `tensors` under names that start with `name`.

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
        items = [freeze(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"": "tuple", "items": items}
    if isinstance(value, dict):
        pairs = [[key, freeze(item, tensors, f"{name}.{key}")] for key, item in value.items()]
        return {"": "dict", "pairs": pairs}
    raise CheckpointError(
        f"{name} is a {type(value).__name__}, which a checkpoint without pickle cannot hold",
        remedy="use another --optimizer or --schedule",
    )


def thaw(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `freeze`."""
    if isinstance(value, list):
        return [thaw(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value[""]
    if kind == "tensor":
        return tensors[value["key"]]
    if kind == "array":
        return tensors[value["key"]].numpy()
    if kind == "tuple":
        return tuple(thaw(item, tensors) for item in value["items"])
    return {key: thaw(item, tensors) for key, item in value["pairs"]}


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"damaged checkpoint ({reason})", where=str(path), remedy="--resume uses the one before it")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Hand a file, or a directory's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot for directories
        pass
    finally:
        os.close(descriptor)
