"""All that a layer needs to know about an adapter's method: its name, eta, and where the scale acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import MergeError
from ..ops.family import METHODS, ApplyTo, GradientAdaptor


@dataclass(frozen=True)
class Rule:
    """How one adapter is trained.

    Attributes:
        method: a name in `alloralib.METHODS` that PEFT's own LoRA layers cannot train.
        eta: the scale where a row of BA is zero, > 0; or 0 with "relative", for no taper.
        apply_to: "gradient" (the paper's rule), or "update" or "relative" (the optimizer's step is scaled instead).
    """

    method: str
    eta: float
    apply_to: ApplyTo = "gradient"

    @property
    def gradient(self) -> GradientAdaptor:
        """What the backward pass does to the gradients of A and B; nothing if the optimizer's step is scaled instead."""
        return "plain" if self.scales_step else METHODS[self.method].gradient

    @property
    def scales_step(self) -> bool:
        """Whether the rule acts on the optimizer's step (`update.py`) and leaves the gradients of A and B alone."""
        return self.apply_to != "gradient"

    @property
    def scales_output(self) -> bool:
        """Whether the forward pass scales the branch's output entry by entry (ASF-LoRA)."""
        return METHODS[self.method].output == "scaled"

    @property
    def scales_rows(self) -> bool:
        """Whether every row of BA has a scale, on the gradient or on the update (ALLoRA, ALLoRA+D)."""
        return METHODS[self.method].gradient == "row"

    def check_mergeable(self, where: str) -> None:
        """Raise if no weight computes what the adapter does.

        Args:
            where: the adapter's name or path, for the message.

        Raises:
            MergeError: the method is ASF-LoRA.
        """
        if not METHODS[self.method].mergeable:
            raise MergeError(
                "ASF-LoRA scales every entry of its output by that entry's size, so no weight computes it",
                where=where,
                remedy="keep the adapter unmerged and load it with alloralib, or train with a mergeable method such as allora",
            )


def rule_of(config: Any) -> Rule | None:
    """The rule of a PEFT configuration; None if PEFT's own LoRA layers train it."""
    rule = getattr(config, "rule", None)
    return rule if isinstance(rule, Rule) else None
