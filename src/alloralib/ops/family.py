"""The methods, one row each: the paper's family (Definition 2), and the LoRA variants to compare it with.

A method of the family is a pair of adaptors. For f(x) = c B A x the forward pass adds f~ = f_o(f) to the frozen layer's
output, and the backward pass hands f_g(G) to A and B. Both are made from one function, `alloralib.ops.scale.scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GradientAdaptor = Literal["plain", "row", "entry"]
"""What A and B get of the output gradient G (rows t = tokens, columns i = output features).

    plain     G                                       LoRA
    row       G_ti / sqrt(||(BA)_i|| + 1/eta^2)       ALLoRA
    entry     G_ti / sqrt(|f(x)_ti| + 1/eta^2)        ALLoRA-OD
"""

OutputAdaptor = Literal["identity", "eta", "scaled", "magnitude"]
"""What the forward pass adds to the frozen layer's output.

    identity  f, with PEFT's own constant factor
    eta       eta f                                   LoRA x eta
    scaled    f_ti / sqrt(|f_ti| + 1/eta^2)           ASF-LoRA
    magnitude DoRA's magnitude and direction
"""

Setting = Literal["eta", "dropout", "apply_to"]
ApplyTo = Literal["gradient", "update", "relative"]
"""Where the scale acts: on the gradient (the paper's rule), on the optimizer's update, or on an update that is also measured
against the frozen weight (`alloralib.ops.relative`)."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        source: the paper it comes from.
        settings: which of eta, dropout and apply_to it has.
        output: its output adaptor.
        gradient: its gradient adaptor.
        mergeable: whether a matrix added to the frozen weight computes the same.
    """

    source: str
    settings: tuple[Setting, ...]
    output: OutputAdaptor = "identity"
    gradient: GradientAdaptor = "plain"
    mergeable: bool = True

    @property
    def dropout(self) -> float:
        """The default rate of dropout in front of A: the paper's 0.05, or 0 for a method without dropout."""
        return 0.05 if "dropout" in self.settings else 0.0

    @property
    def is_stock_lora(self) -> bool:
        """Whether PEFT's own LoRA layers train it: it needs neither a gradient nor an output of its own."""
        return self.gradient == "plain" and self.output != "scaled"


METHODS: dict[str, Method] = {
    "allora": Method("arXiv:2410.09692, section 4.2", ("eta", "apply_to"), gradient="row"),
    "allora-d": Method("ALLoRA+D: arXiv:2410.09692, Tables 2, 3, 6", ("eta", "apply_to", "dropout"), gradient="row"),
    "allora-od": Method("ALLoRA-OD: arXiv:2410.09692, section 4.3", ("eta",), gradient="entry"),
    "asf-lora": Method("ASF-LoRA: arXiv:2410.09692, section 4.3", ("eta",), output="scaled", mergeable=False),
    "lora-x-eta": Method("LoRA x eta: arXiv:2410.09692, section 4.3", ("eta", "dropout"), output="eta"),
    "lora": Method("LoRA: arXiv:2106.09685", ("dropout",)),
    "dora": Method("DoRA: arXiv:2402.09353", ("dropout",), output="magnitude"),
    "rslora": Method("rank-stabilized LoRA: arXiv:2312.03732", ("dropout",)),
    "lora-plus": Method("LoRA+: arXiv:2402.12354 (B learns 16 times as fast as A)", ("dropout",)),
    "pissa": Method("PiSSA: arXiv:2404.02948", ("dropout",)),
}
"""Every method by name, for `alloralib.make_config` and `allora train --method`."""
