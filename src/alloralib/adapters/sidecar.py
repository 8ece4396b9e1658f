"""`allora_config.json`, the file beside PEFT's `adapter_config.json`: an adapter's rule, and which base it was trained on.

PEFT does not read it. Training reads the rule; whatever loads the base checks it. An adapter of a stock method (lora, dora,
...) that `allora train` made has the file too, with no rule in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .. import __version__
from ..errors import ConfigError, did_you_mean
from ..files import write_text
from ..ops.family import METHODS
from .rule import Rule

SIDECAR = "allora_config.json"
_FORMAT = 1
_FORMAT_WITHOUT_RULE = 2
"""Another number, because a version that expects a rule must ask for an update."""


def write_sidecar(rule: Rule | None, directory: str | os.PathLike[str], base: Mapping[str, Any] | None = None) -> None:
    """Write the file to `directory`, beside PEFT's `adapter_config.json`.

    Args:
        rule: None for a stock method.
        base: the identity of the base model (`training.base_identity`), if it is known.
    """
    content = {"format": _FORMAT_WITHOUT_RULE if rule is None else _FORMAT, "alloralib_version": __version__}
    content |= {"method": None} if rule is None else asdict(rule)
    if base is not None:
        content["base"] = base
    write_text(Path(directory, SIDECAR), json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_sidecar(path: str | os.PathLike[str], **hub: Any) -> Rule | None:
    """The rule of a saved adapter; None for a stock LoRA adapter, with or without the file.

    Args:
        path: a directory or a hub id.
        hub: arguments of `huggingface_hub.hf_hub_download`; `subfolder` is used for a directory, too.

    Raises:
        ConfigError: the file is damaged, or was written by a later version.
    """
    return _read(path, hub)[0]


def read_base(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The identity of the base model that a saved adapter was trained on; None if it is not known.

    Raises:
        ConfigError: as `read_sidecar`.
    """
    return _read(path, {})[1]


def _read(path: str | os.PathLike[str], hub: dict[str, Any]) -> tuple[Rule | None, dict[str, Any] | None]:
    file = Path(path, hub.get("subfolder") or "", SIDECAR)
    if not file.is_file():
        if Path(path).exists():
            return None, None
        try:
            file = Path(hf_hub_download(str(path), SIDECAR, **hub))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None, None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        written, rule = content["format"], None
        if written == _FORMAT:
            rule = Rule(content["method"], content["eta"], content["apply_to"])
        base = content.get("base")
        if base is not None and not isinstance(base, dict):
            raise TypeError(f"base is {base!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"not an alloralib configuration ({error!r})",
            where=str(file),
            remedy="restore the file, or delete it to load the adapter as plain LoRA",
        ) from error
    if written not in (_FORMAT, _FORMAT_WITHOUT_RULE):
        raise ConfigError(f"format {written!r} is not {_FORMAT}", where=str(file), remedy="update alloralib")
    known = [name for name, method in METHODS.items() if not method.is_stock_lora]
    if rule is not None and rule.method not in known:
        raise ConfigError(f"unknown method {rule.method!r}", where=str(file), remedy=did_you_mean(str(rule.method), known))
    return rule, base
