"""Which base model an adapter belongs to, known by the base's content and not by its path.

A run keeps, in its record and in the adapter's `allora_config.json`:

    name        as it was given: a directory, a hub id or a bundled model
    revision    the commit, if the model is in the hub's cache
    weights     a SHA-256 of all tensors
    config      the fields of the configuration that change what the model computes, defaults included
    config_file a SHA-256 of those that are in config.json, so that other defaults of a later transformers do not count

`weights` is the SHA-256 of a sorted list with a line per tensor: its name, dtype, shape and the SHA-256 of its values. So the
same tensors in other shards, or in another order, are the same base. It reads every byte of the weights, in several threads.
A model of the hub with the recorded commit is not read.

The tokenizer is not a part of it: a run and its exports have their own copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, PreTrainedConfig

from ..errors import ConfigError, ModelError
from ..files import finite, sha256_of_bytes, sha256_of_json

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 24
_THREADS = 8
_NO_EFFECT = frozenset(
    [  # on the logits: names, the head (which belongs to the adapter), what is returned, the dtype on disk
        *("architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict"),
        *("output_attentions", "output_hidden_states", "finetuning_task", "task_specific_params"),
        *("id2label", "label2id", "num_labels", "problem_type"),
    ]
)


@dataclass(frozen=True)
class BaseIdentity:
    """A base model's name and content; see above.

    Attributes:
        name: as it was given.
        revision: commit on the hub, None for a directory.
        weights: SHA-256 of the tensors, None if their files were not found.
        config: values of the configuration by field, as transformers reads it.
        config_file: SHA-256 of the values in config.json.
    """

    name: str
    revision: str | None
    weights: str | None
    config: dict[str, Any]
    config_file: str

    @classmethod
    def of(cls, entry: Mapping[str, Any] | None, where: str) -> BaseIdentity | None:
        """The identity in a record or in `allora_config.json`; None if they were written without one.

        Args:
            where: the file, for the message.

        Raises:
            ConfigError: the entry is damaged.
        """
        if entry is None or "weights" not in entry:
            return None
        try:
            return cls(str(entry["name"]), entry["revision"], entry["weights"], dict(entry["config"]), entry["config_file"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"damaged entry of the base model ({error!r})", where=where, remedy="restore the file") from error


class _Tensor(NamedTuple):
    """Where a tensor is in a safetensors file."""

    file: Path
    name: str
    dtype: str
    shape: list[int]
    start: int
    stop: int


def identify(name: str, path: str, known: BaseIdentity | None = None) -> BaseIdentity:
    """The identity of a model that has been loaded, so that a hub model is in the cache.

    Args:
        name: as the user gave it.
        path: its directory or hub id.
        known: returned if the model is the same commit of the hub, instead of reading the weights.
    """
    directory, revision = _snapshot(path)
    if known is not None and revision is not None and revision == known.revision:
        return known
    config = json.loads(json.dumps(finite(AutoConfig.from_pretrained(path).to_dict()), default=repr))
    file = PreTrainedConfig.get_config_dict(path)[0]
    return BaseIdentity(name, revision, digest_of_weights(directory), _effective(config), sha256_of_json(_effective(file)))


def difference(now: BaseIdentity, then: BaseIdentity) -> str | None:
    """What makes two bases different, as a part of a sentence; None if they are the same, whatever their names."""
    fields = [] if now.config_file == then.config_file else list(_changed(now.config, then.config))
    if fields:
        return "in its config.json " + "; ".join(fields[:3])
    if now.weights == then.weights or None in (now.weights, then.weights):
        return None
    commits = f", revision {now.revision} and not {then.revision}" if now.revision and then.revision else ""
    return f"its weights have the sha256 {now.weights:.12}... and had {then.weights:.12}...{commits}"


def check_base(trained: BaseIdentity | None, path: str, adapter: str, *, allow_other: bool = False) -> None:
    """Check that a model, which has been loaded, is the one that an adapter was trained on.

    Args:
        trained: the identity of the base in training. If it is None, a warning says that nothing could be checked.
        path: directory or hub id of the model.
        adapter: directory of the adapter, for the message.
        allow_other: warn instead of raising.

    Raises:
        ModelError: it is another one.
    """
    if trained is None:
        what = f"{adapter}: it does not say which weights it was trained on, so its base {path} is not checked"
        print(f"allora: warning: {what}", file=sys.stderr)
        return
    found = difference(identify(path, path, known=trained), trained)
    if found is None:
        return
    what = f"not the base model that {adapter} was trained on ({trained.name}): {found}"
    if allow_other:
        print(f"allora: warning: {path}: {what}", file=sys.stderr)
        return
    remedy = "give the one that it was trained on (--model DIR)"
    if trained.revision is not None:
        remedy = f"hf download {trained.name} --revision {trained.revision} --local-dir DIR, and give --model DIR"
    raise ModelError(what, where=path, remedy=f"{remedy}; or use this one all the same (--allow-other-base)")


def digest_of_weights(directory: Path | None) -> str | None:
    """The SHA-256 of all tensors in a model's directory; None if it has none."""
    tensors = list(_tensors(directory))
    if not tensors:
        return None
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        lines = sorted(pool.map(_line, sorted(tensors, key=lambda t: t.start - t.stop)))  # the largest first
    return sha256_of_bytes("\n".join(lines).encode())


def stored_dtypes(path: str) -> dict[str, torch.dtype]:
    """The dtype of every floating-point tensor as it is stored, by name in the file. Empty for a hub model not in the cache."""
    return {t.name: _DTYPES[t.dtype] for t in _tensors(_snapshot(path)[0]) if t.dtype in _DTYPES}


def stored_dtype(path: str) -> torch.dtype | None:
    """The dtype in which most of a model's weights are stored; None if its files are not found."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in _tensors(_snapshot(path)[0]):
        if tensor.dtype in _DTYPES:
            dtype = _DTYPES[tensor.dtype]
            sizes[dtype] = sizes.get(dtype, 0) + tensor.stop - tensor.start
    return max(sizes, key=sizes.__getitem__, default=None)


def _snapshot(path: str) -> tuple[Path | None, str | None]:
    """The directory of a model, and its commit if that is in the hub's cache."""
    directory = Path(path)
    if not directory.is_dir():
        file = try_to_load_from_cache(path, "config.json")
        if not isinstance(file, str):
            return None, None
        directory = Path(file).parent
    is_commit = directory.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", directory.name)
    return directory, directory.name if is_commit else None


def _tensors(directory: Path | None) -> Iterator[_Tensor]:
    """The tensors of the files that transformers loads."""
    for file in [] if directory is None else _weight_files(directory):
        with file.open("rb") as stream:  # 8 bytes: length of the header; the header as JSON; the values
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = (8 + length + offset for offset in entry["data_offsets"])
                yield _Tensor(file, name, entry["dtype"], entry["shape"], start, stop)


def _weight_files(directory: Path) -> list[Path]:
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [file for name in sorted(set(names)) if (file := directory / name).is_file()]  # or not downloaded yet
    return sorted(directory.glob("*.safetensors"))


def _line(tensor: _Tensor) -> str:
    digest = hashlib.sha256()
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        for start in range(tensor.start, tensor.stop, _CHUNK):
            digest.update(stream.read(min(_CHUNK, tensor.stop - start)))
    return f"{tensor.name} {tensor.dtype} {tensor.shape} {digest.hexdigest()}"


def _changed(now: Mapping[str, Any], then: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The fields with another value. One that only one side has is a default of another version of transformers."""
    for key in sorted(now.keys() & then.keys()):
        new, old = now[key], then[key]
        if isinstance(new, dict) and isinstance(old, dict):
            yield from _changed(new, old, f"{prefix}{key}.")
        elif new != old:
            yield f"{prefix}{key} is {new!r} and was {old!r}"


def _effective(value: Any) -> Any:
    """Without the fields that do not change what a model computes."""
    if isinstance(value, dict):
        kept = {key: _effective(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if key not in _NO_EFFECT and not key.startswith("_")}
    return [_effective(item) for item in value] if isinstance(value, list) else value
