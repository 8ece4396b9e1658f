"""Every method by name: its PEFT configuration, and its optimizer's parameter groups.

>>> make_config("asf-lora", r=8, target_modules=["q_proj"]).method
'asf-lora'
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

from ..errors import ConfigError, did_you_mean
from ..ops.family import METHODS, ApplyTo, Setting
from .config import AlloraConfig, VariantConfig
from .stock import StockConfig

DEFAULT_ETA = 2.0
LORAPLUS_RATIO = 16.0
"""Learning rate of B over that of A in LoRA+: what its authors recommend (arXiv:2402.12354)."""


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

    A configuration does not reach the optimizer: "lora-plus" also needs `optimizer_groups`, without which it is plain LoRA.

    Args:
        method: a name in `alloralib.METHODS`.
        r: rank. alpha is r wherever a method has an alpha (eta * r for lora-x-eta).
        eta: for methods that have it; default 2.
        dropout: for methods that have it; default 0.05, as in the paper.
        apply_to: for allora and allora-d; default "gradient".
        settings: passed on to the configuration (`target_modules`, `task_type`, `modules_to_save`, ...).

    Raises:
        ConfigError: an unknown method, a setting that the method does not have, or a value out of range.
    """
    _check_method(method)
    given: dict[Setting, Any] = {"eta": eta, "dropout": dropout, "apply_to": apply_to}
    for name, value in given.items():
        if value is not None and name not in METHODS[method].settings:
            others = ", ".join(other for other, m in METHODS.items() if name in m.settings)
            raise ConfigError(f"method {method!r} has no {name}", remedy=f"leave {name} out; methods with it: {others}")
    eta = DEFAULT_ETA if eta is None else eta
    dropout = METHODS[method].dropout if dropout is None else dropout
    if method == "allora":
        return AlloraConfig(r=r, eta=eta, apply_to=apply_to or "gradient", **settings)
    if not METHODS[method].is_stock_lora:
        return VariantConfig(method=method, r=r, eta=eta, apply_to=apply_to or "gradient", lora_dropout=dropout, **settings)
    AlloraConfig(r=r, eta=eta)  # the same checks of r and eta for every method
    if method == "lora-x-eta":
        settings["alpha_pattern"] = {key: eta * rank for key, rank in (settings.get("rank_pattern") or {}).items()}
        return StockConfig(r=r, lora_alpha=eta * r, lora_dropout=dropout, **settings)  # pyright: ignore[reportArgumentType]
    settings.setdefault("alpha_pattern", dict(settings.get("rank_pattern") or {}))
    settings.setdefault("lora_alpha", r)
    if method == "dora":
        settings["use_dora"] = True
    elif method == "rslora":
        settings["use_rslora"] = True
    elif method == "pissa":
        settings["init_lora_weights"] = "pissa"
    return StockConfig(r=r, lora_dropout=dropout, **settings)


def optimizer_groups(
    model: Any, method: str, *, learning_rate: float, weight_decay: float = 0.0, ratio: float = LORAPLUS_RATIO,
    head_learning_rate: float | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The parameter groups of a method, for any torch optimizer. With LoRA+, B learns faster than everything else.

        model = get_peft_model(model, make_config("lora-plus", target_modules="all-linear"))
        optimizer = torch.optim.AdamW(optimizer_groups(model, "lora-plus", learning_rate=1e-4))

    `allora train` does this by itself. All other methods have one group. What is trained whole, such as the head of a
    classifier, can have a learning rate of its own.

    Args:
        model: the adapted model. Only parameters that require a gradient are in the groups.
        method: a name in `alloralib.METHODS`.
        learning_rate: of A, and of everything else that is not B.
        weight_decay: of all groups, but not of biases and norms in a group of the head.
        ratio: learning rate of B over that of A in LoRA+; the default is what its authors recommend (arXiv:2402.12354).
        head_learning_rate: of what is trained whole (PEFT's `modules_to_save`); None for `learning_rate`.

    Returns:
        one dictionary with `params`, `lr` and `weight_decay` per group. The first has `learning_rate`.

    Raises:
        ConfigError: an unknown method, or a `head_learning_rate` where nothing is trained whole.
    """
    _check_method(method)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fast = {name for name, _ in trained if method == "lora-plus" and ("lora_B" in name or "lora_embedding_B" in name)}
    head = [(name, p) for name, p in trained if head_learning_rate is not None and ".modules_to_save." in name]
    if head_learning_rate is not None and not head:
        raise ConfigError("head_learning_rate has no effect: no module is trained whole", remedy="leave it out")
    own = fast | {name for name, _ in head}
    rest = [p for name, p in trained if name not in own]
    groups = [{"params": rest, "lr": learning_rate, "weight_decay": weight_decay}]
    if fast:
        params = [p for name, p in trained if name in fast]
        groups.append({"params": params, "lr": learning_rate * ratio, "weight_decay": weight_decay})
    for decay, is_vector in ((weight_decay, False), (0.0, True)):  # as transformers' Trainer
        params = [p for _, p in head if (p.dim() < 2) == is_vector]
        if params:
            groups.append({"params": params, "lr": head_learning_rate, "weight_decay": decay})
    return groups


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", remedy=did_you_mean(method, METHODS))
