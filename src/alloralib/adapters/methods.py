"""Every method by name: the paper's family, and the LoRA variants it has to be compared with.

>>> make_config("asf-lora", r=8, target_modules=["q_proj"]).method
'asf-lora'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from peft import LoraConfig

from ..errors import ConfigError, did_you_mean
from ..ops.adaptors import FAMILY
from .config import RESEARCH, AlloraConfig, ApplyTo, VariantConfig

DEFAULT_ETA = 2.0
DEFAULT_DROPOUT = 0.05
LORAPLUS_RATIO = 16.0
"""Learning rate of B over that of A in LoRA+ (arXiv:2402.12354, the ratio its authors recommend)."""

Knob = Literal["eta", "dropout", "apply_to"]


@dataclass(frozen=True)
class Method:
    """What a method is called, which of the research knobs it has, and where it comes from."""

    knobs: frozenset[Knob]
    source: str


def _method(source: str, *knobs: Knob) -> Method:
    return Method(frozenset(knobs), source)


METHODS: dict[str, Method] = {
    "allora": _method("arXiv:2410.09692, section 4.2", "eta", "apply_to"),
    "allora-d": _method("ALLoRA+D: arXiv:2410.09692, Tables 2, 3, 6", "eta", "apply_to", "dropout"),
    "allora-od": _method("ALLoRA-OD: arXiv:2410.09692, section 4.3", "eta"),
    "asf-lora": _method("ASF-LoRA: arXiv:2410.09692, section 4.3", "eta"),
    "lora-x-eta": _method("LoRA x eta: arXiv:2410.09692, section 4.3", "eta", "dropout"),
    "lora": _method("LoRA: arXiv:2106.09685", "dropout"),
    "dora": _method("DoRA: arXiv:2402.09353", "dropout"),
    "rslora": _method("rank-stabilized LoRA: arXiv:2312.03732", "dropout"),
    "lora-plus": _method("LoRA+: arXiv:2402.12354 (B learns 16 times as fast as A)", "dropout"),
    "pissa": _method("PiSSA: arXiv:2404.02948", "dropout"),
}


def make_config(
    method: str,
    *,
    r: int = 16,
    eta: float | None = None,
    dropout: float | None = None,
    apply_to: ApplyTo | None = None,
    **settings: Any,
) -> LoraConfig:
    """The PEFT configuration of a method.

    Args:
        method: a name in `METHODS`.
        r: rank. alpha = r wherever a method has an alpha (eta * r for lora-x-eta).
        eta: for the methods that have one; default 2.
        dropout: for the methods that have one; default 0.05, as in the paper.
        apply_to: for allora and allora-d; default "gradient".
        settings: passed on (`target_modules`, `task_type`, `modules_to_save`, ...).

    Raises:
        ConfigError: an unknown name, or a knob that the method does not have.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", remedy=did_you_mean(method, METHODS))
    given: dict[Knob, Any] = {"eta": eta, "dropout": dropout, "apply_to": apply_to}
    for knob, value in given.items():
        if value is not None and knob not in METHODS[method].knobs:
            having = ", ".join(name for name, m in METHODS.items() if knob in m.knobs)
            raise ConfigError(f"method {method!r} has no {knob}", remedy=f"leave {knob} out; the methods with it: {having}")
    eta = DEFAULT_ETA if eta is None else eta
    dropout = DEFAULT_DROPOUT if dropout is None else dropout
    if method == "allora":
        return AlloraConfig(r=r, eta=eta, apply_to=apply_to or "gradient", **settings)
    if method in RESEARCH:
        rate = dropout if FAMILY[method].dropout else 0.0
        return VariantConfig(method=method, r=r, eta=eta, apply_to=apply_to or "gradient", lora_dropout=rate, **settings)
    AlloraConfig(r=r, eta=eta)  # the same checks of r and eta for everyone
    if method == "lora-x-eta":
        settings["alpha_pattern"] = {key: eta * rank for key, rank in (settings.get("rank_pattern") or {}).items()}
        return LoraConfig(r=r, lora_alpha=eta * r, lora_dropout=dropout, **settings)  # pyright: ignore[reportArgumentType]
    settings.setdefault("alpha_pattern", dict(settings.get("rank_pattern") or {}))
    settings.setdefault("lora_alpha", r)
    if method == "dora":
        settings["use_dora"] = True
    elif method == "rslora":
        settings["use_rslora"] = True
    elif method == "pissa":
        settings["init_lora_weights"] = "pissa"
    return LoraConfig(r=r, lora_dropout=dropout, **settings)


def optimizer_groups(method: str, model: Any, learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]] | None:
    """Parameter groups for a method that learns at more than one rate (LoRA+), else None.

    Args:
        model: the adapted model; only what requires a gradient is in the groups.
        learning_rate: of A and of all that is not B.
    """
    if method != "lora-plus":
        return None
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_B = [("lora_B" in name or "lora_embedding_B" in name) for name, _ in named]
    rest = [p for (_, p), b in zip(named, is_B, strict=True) if not b]
    fast = [p for (_, p), b in zip(named, is_B, strict=True) if b]
    return [
        {"params": rest, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": fast, "lr": learning_rate * LORAPLUS_RATIO, "weight_decay": weight_decay},
    ]
