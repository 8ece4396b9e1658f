"""Adapters on disk: a stock LoRA directory plus `allora_config.json`, which only training reads.

Importing this module tells PEFT about the sidecar, by the registry in which PEFT looks up the configuration class of
a saved adapter: `PeftModel.from_pretrained(..., is_trainable=True)` then goes on training with the rule.

Foreign private API used here: `peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, cast

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from .. import __version__
from ..errors import ConfigError, did_you_mean
from ..ops.adaptors import FAMILY
from .config import AlloraConfig, VariantConfig

SIDECAR = "allora_config.json"
_FORMAT = 1
_HUB_ARGUMENTS = ("revision", "cache_dir", "token", "subfolder", "local_files_only")


def write_sidecar(config: AlloraConfig, directory: str | os.PathLike[str]) -> None:
    """Write our settings beside PEFT's `adapter_config.json`."""
    content = {"format": _FORMAT, "alloralib_version": __version__, **config.sidecar()}
    Path(directory, SIDECAR).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_sidecar(path: str | os.PathLike[str], **hub: Any) -> dict[str, Any] | None:
    """The settings beside an adapter, a directory or a hub id; None where there are none.

    Raises:
        ConfigError: the file is damaged, or written by a later version.
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
        if content["format"] != _FORMAT:
            raise ConfigError(f"format {content['format']!r} is not {_FORMAT}", where=str(file), remedy="update alloralib")
        settings = {key: content[key] for key in ("method", "eta", "apply_to")}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"not an alloralib sidecar ({error!r})",
            where=str(file),
            remedy="restore the file, or delete it to load the adapter as plain LoRA",
        ) from error
    if settings["method"] not in FAMILY:
        raise ConfigError(
            f"unknown method {settings['method']!r}", where=str(file), remedy=did_you_mean(settings["method"], FAMILY)
        )
    return settings


def load_config(path: str | os.PathLike[str], **kwargs: Any) -> LoraConfig:
    """The configuration of a saved adapter: ours where the sidecar is there, else PEFT's `LoraConfig`.

    Args:
        path: a directory or a hub id; `revision`, `subfolder`, ... as in `PeftConfig.from_pretrained`.
    """
    hub = {key: value for key, value in kwargs.items() if key in _HUB_ARGUMENTS and value is not None}
    settings = read_sidecar(path, **hub)
    stock = cast(LoraConfig, LoraConfig.from_pretrained(str(path), **kwargs))
    if settings is None:
        return stock
    fields = {f.name: getattr(stock, f.name) for f in dataclasses.fields(LoraConfig) if f.init}
    fields |= {"eta": settings["eta"], "apply_to": settings["apply_to"], "peft_type": None}
    if settings["method"] == "allora":
        return AlloraConfig(**fields)
    return VariantConfig(method=settings["method"], **fields)


class _AnyLora(type):
    """PEFT also asks `isinstance(config, registry["LORA"])` and calls the entry: it behaves as `LoraConfig` there."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, LoraConfig)

    def __call__(cls, *args: Any, **kwargs: Any) -> LoraConfig:
        return LoraConfig(*args, **kwargs)


class SavedLoraConfig(LoraConfig, metaclass=_AnyLora):
    """PEFT's entry for saved LoRA adapters; looks for the sidecar first."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> LoraConfig:
        """As `load_config`."""
        return load_config(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)


def register() -> None:
    """Put `SavedLoraConfig` where PEFT looks for the class of a saved LoRA adapter, and name what is not a LoRA."""
    registry: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    registry["LORA"] = SavedLoraConfig
    for name, member in FAMILY.items():
        if not member.mergeable:
            registry[name.upper()] = SavedLoraConfig


register()
