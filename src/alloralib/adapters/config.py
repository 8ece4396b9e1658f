"""`AlloraConfig`: ALLoRA as a PEFT configuration.

It is a `peft.LoraConfig`, so `get_peft_model`, transformers' `add_adapter` and TRL's `peft_config=` accept it. LoRA settings
that ALLoRA does not have (alpha, dropout, rsLoRA, DoRA, ...) cannot be set. On disk it is a stock LoRA configuration
(`adapter_config.json`, with `lora_alpha == r`) and a file beside it that only training reads (`sidecar.py`).

Foreign private API used here: `LoraConfig._custom_modules`, PEFT's hook for custom layers.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from peft import LoraConfig
from torch import nn

from ..errors import ConfigError, did_you_mean
from ..ops.family import METHODS, ApplyTo
from .dispatch import build_layer
from .rule import Rule
from .sidecar import read_sidecar, write_sidecar
from .stock import shortened

LARGEST_ETA = 1e6
"""Beyond it eta^2 |BA| does not fit float32. The paper uses 1 to 2."""

# Fields of LoraConfig that may differ from its defaults. All others, including those of later PEFT versions, are refused.
_SETTABLE = frozenset(
    [
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "r", "rank_pattern", "lora_alpha", "alpha_pattern", "eta", "apply_to"),
        *("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "trainable_token_indices", "ensure_weight_tying", "layer_replication"),
        *("init_lora_weights", "fan_in_fan_out", "bias", "method"),
    ]
)
_WHY_NOT = {
    "lora_alpha": "ALLoRA has no factor alpha/r: it compounds from layer to layer (the paper's third flaw)",
    "alpha_pattern": "ALLoRA has no factor alpha/r: it compounds from layer to layer (the paper's third flaw)",
    "use_rslora": "rank-stabilized LoRA is another factor alpha/r, and ALLoRA has none",
    "lora_dropout": "ALLoRA has no dropout: in a short run it does not converge as a regularizer (the paper's first flaw)",
    "use_dora": "DoRA splits the weight into magnitude and direction, where the rule is not defined",
    "lora_bias": "the rule scales rows of BA, and a bias on B is not one of them",
}
_HUB_ARGUMENTS = ("revision", "cache_dir", "token", "subfolder", "local_files_only")
_INITS = (True, False, "gaussian", "orthogonal")


@dataclass
class AlloraConfig(LoraConfig):
    """Configuration of an ALLoRA adapter: W + BA, gradients of A and B scaled row by row (arXiv:2410.09692, section 4.2).

    Args:
        r: rank, >= 1. More than a layer's smaller side only warns.
        eta: the scale while a row of BA is zero, in (0, 1e6], or 0 with apply_to="relative". The scale is
            1/sqrt(||(BA)_i|| + 1/eta^2). It is not the learning rate: the effective learning rate starts at eta times the
            learning rate.
        apply_to: "gradient" is the paper's rule. "update" leaves the gradients alone and scales the optimizer's step, which
            lets eta keep its meaning under Adam. "relative" also measures that step against the frozen weight: the learning
            rate is then the share of W that one step changes, and eta = 0 turns the taper off (docs/rule.md).
        target_modules, exclude_modules, target_parameters, modules_to_save, rank_pattern, layers_to_transform, bias,
            init_lora_weights (True, False, "gaussian", "orthogonal"), task_type, ...: as in `peft.LoraConfig`.

    Raises:
        ConfigError: a value out of range, or a LoRA setting that ALLoRA does not have (`lora_alpha`, `lora_dropout`,
            `use_rslora`, `use_dora`, ...). Values that mean "absent" are accepted, so that `dataclasses.replace` works.

    >>> AlloraConfig(r=8, target_modules=["q_proj"]).lora_alpha
    8
    """

    r: int = field(default=16, metadata={"help": "Rank of the adapter, at least 1."})
    lora_alpha: int | None = field(default=None, metadata={"help": "Always r; cannot be set."})  # pyright: ignore
    eta: float = field(default=2.0, metadata={"help": "Scale of the gradient while a row of BA is zero, > 0."})
    apply_to: ApplyTo = field(
        default="gradient",
        metadata={"help": "Scale the gradient (the paper's rule), the update, or the update relative to W."},
    )

    def __post_init__(self) -> None:
        self._check_numbers()
        self._refuse_unsupported()
        super().__post_init__()
        self._sync_alpha()
        self._custom_modules = {nn.Module: build_layer}  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def rule(self) -> Rule:
        """How its adapters are trained."""
        return Rule("allora", float(self.eta), self.apply_to)

    def _check_numbers(self) -> None:
        ranks = {"r": self.r} | {f"rank_pattern[{key!r}]": r for key, r in (self.rank_pattern or {}).items()}
        for name, r in ranks.items():
            if isinstance(r, bool) or not isinstance(r, int) or r < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {r!r}", remedy="set r to 4 ... 64")
        no_taper = self.apply_to == "relative" and self.eta == 0
        number = isinstance(self.eta, int | float) and not isinstance(self.eta, bool)
        if not number or not (0 < self.eta <= LARGEST_ETA or no_taper):
            raise ConfigError(
                f"eta must be a number in (0, {LARGEST_ETA:g}], got {self.eta!r}",
                remedy="the paper uses eta = 1, 1.41 and 2; it is the scale of the gradient while a row of BA is zero",
            )
        known = get_args(ApplyTo)
        if self.apply_to not in known:
            remedy = did_you_mean(str(self.apply_to), known)
            raise ConfigError(f"apply_to must be one of {', '.join(known)}, got {self.apply_to!r}", remedy=remedy)

    def _settable(self) -> frozenset[str]:
        return _SETTABLE

    def _refuse_unsupported(self) -> None:
        if self.lora_alpha not in (None, self.r):
            self._refuse("lora_alpha", self.lora_alpha)
        if self.alpha_pattern and self.alpha_pattern != self.rank_pattern:
            self._refuse("alpha_pattern", self.alpha_pattern)
        if self.init_lora_weights not in _INITS:
            raise ConfigError(
                f"init_lora_weights={self.init_lora_weights!r} is not possible: ALLoRA starts with B = 0 on an unchanged W",
                remedy="leave it True, or use 'gaussian'; for LoRA with PiSSA use alloralib.make_config('pissa')",
            )
        settable = self._settable()
        for f in dataclasses.fields(LoraConfig):
            if f.name in settable:
                continue
            neutral = f.default_factory() if f.default is dataclasses.MISSING else f.default  # type: ignore[misc]
            if getattr(self, f.name) not in (neutral, None, {}):
                self._refuse(f.name, getattr(self, f.name))

    def _refuse(self, name: str, value: object) -> None:
        raise ConfigError(
            f"{name}={value!r} cannot be set on {type(self).__name__}: "
            + _WHY_NOT.get(name, "it is another LoRA variant, and ALLoRA is not tested with it"),
            remedy="leave it out, or choose another method by name with alloralib.make_config(...)",
        )

    def _sync_alpha(self) -> None:
        """Keep alpha/r = 1 for every rank after r or rank_pattern was assigned."""
        self.lora_alpha = self.r  # pyright: ignore[reportIncompatibleVariableOverride]
        self.alpha_pattern = dict(self.rank_pattern or {})

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`: the stock LoRA adapter with the same forward pass, without keys at default."""
        self._sync_alpha()
        stock = {f.name for f in dataclasses.fields(LoraConfig)}
        return shortened({key: value for key, value in super().to_dict().items() if key in stock})

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, with LoRA's keys only, and `allora_config.json`, with the rule."""
        super().save_pretrained(save_directory, **kwargs)
        write_sidecar(self.rule, save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> LoraConfig:
        """As `load_config`."""
        return load_config(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)


@dataclass
class VariantConfig(AlloraConfig):
    """A variant of ALLoRA from the paper (ALLoRA+D, ALLoRA-OD, ASF-LoRA); made by name with `alloralib.make_config`.

    Args:
        method: its name in `alloralib.METHODS`.
        lora_dropout: rate of the dropout in front of A, for a method that has dropout.

    Raises:
        ConfigError: as `AlloraConfig`; or the method does not exist or does not have the setting.
    """

    method: str = field(default="allora-d", metadata={"help": "Name of the method in alloralib.METHODS."})

    def __post_init__(self) -> None:
        variants = [name for name, m in METHODS.items() if not m.is_stock_lora and name != "allora"]
        if self.method not in variants:
            raise ConfigError(f"method={self.method!r} is not one of {', '.join(variants)}")
        if self.apply_to != "gradient" and "apply_to" not in METHODS[self.method].settings:
            what = f"apply_to={self.apply_to!r} scales rows, and {self.method} does not"
            raise ConfigError(what, remedy="leave apply_to out")
        if not (isinstance(self.lora_dropout, int | float) and 0 <= self.lora_dropout < 1) or math.isnan(self.lora_dropout):
            raise ConfigError(f"dropout must be in [0, 1), got {self.lora_dropout!r}")
        super().__post_init__()

    @property
    def rule(self) -> Rule:
        """How its adapters are trained."""
        return Rule(self.method, float(self.eta), self.apply_to)

    def _settable(self) -> frozenset[str]:
        return _SETTABLE | {"lora_dropout"} if "dropout" in METHODS[self.method].settings else _SETTABLE

    def to_dict(self) -> dict[str, Any]:
        """As `AlloraConfig.to_dict`. A method that no LoRA adapter computes must be refused by other programs, and not be
        taken for LoRA: PEFT refuses the unknown `peft_type`; those that do not look at it need `lora_alpha`, which is left out.
        """
        stock = super().to_dict()
        if not METHODS[self.method].mergeable:
            stock["peft_type"] = self.method.upper()
            del stock["lora_alpha"]
        return stock


def load_config(path: str | os.PathLike[str], **kwargs: Any) -> LoraConfig:
    """The configuration of a saved adapter: ours if `allora_config.json` is there, else PEFT's `LoraConfig`.

    Args:
        path: a directory or a hub id.
        kwargs: `revision`, `subfolder`, ... as in `PeftConfig.from_pretrained`.

    Raises:
        ConfigError: `allora_config.json` is damaged, or was written by a later version.
    """
    rule = read_sidecar(path, **{key: value for key, value in kwargs.items() if key in _HUB_ARGUMENTS and value is not None})
    stock = cast(LoraConfig, LoraConfig.from_pretrained(str(path), **kwargs))
    if rule is None:
        return stock
    fields = {f.name: getattr(stock, f.name) for f in dataclasses.fields(LoraConfig) if f.init}
    fields |= {"eta": rule.eta, "apply_to": rule.apply_to, "peft_type": None}
    if not METHODS[rule.method].mergeable:
        fields["lora_alpha"] = None
    return AlloraConfig(**fields) if rule.method == "allora" else VariantConfig(method=rule.method, **fields)
