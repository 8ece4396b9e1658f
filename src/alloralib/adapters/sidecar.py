"""`allora_config.json`, the file beside PEFT's `adapter_config.json` that holds an adapter's rule. Only training reads it."""

from __future__ import annotations

import json
import os
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


def write_sidecar(rule: Rule, directory: str | os.PathLike[str]) -> None:
    """Write the rule to `directory`, beside PEFT's `adapter_config.json`."""
    content = {"format": _FORMAT, "alloralib_version": __version__, **asdict(rule)}
    write_text(Path(directory, SIDECAR), json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_sidecar(path: str | os.PathLike[str], **hub: Any) -> Rule | None:
    """The rule of a saved adapter; None if it is a stock LoRA adapter without the file.

    Args:
        path: a directory or a hub id.
        hub: arguments of `huggingface_hub.hf_hub_download`; `subfolder` is used for a directory, too.

    Raises:
        ConfigError: the file is damaged, or was written by a later version.
    """
    file = Path(path, hub.get("subfolder") or "", SIDECAR)
    if not file.is_file():
        if Path(path).exists():
            return None
        try:
            file = Path(hf_hub_download(str(path), SIDECAR, **hub))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        written, rule = content["format"], None
        if written == _FORMAT:
            rule = Rule(content["method"], content["eta"], content["apply_to"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"not an alloralib configuration ({error!r})",
            where=str(file),
            remedy="restore the file, or delete it to load the adapter as plain LoRA",
        ) from error
    if rule is None:
        raise ConfigError(f"format {written!r} is not {_FORMAT}", where=str(file), remedy="update alloralib")
    known = [name for name, method in METHODS.items() if not method.is_stock_lora]
    if rule.method not in known:
        raise ConfigError(f"unknown method {rule.method!r}", where=str(file), remedy=did_you_mean(str(rule.method), known))
    return rule
