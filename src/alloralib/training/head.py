"""How the head of a classifier starts: with random values, at zero, or as a logistic regression on the model's own features.

The logits of most classifiers are one linear layer of features that the model has pooled in its own way: by BERT's pooler, at
the last token of a decoder. Only the numbers of that layer change here, so what a run saves loads as always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from ..evaluation.baselines import logistic_regression
from ..evaluation.scoring import class_logits
from .baselines import planned_rows
from .compiling import eagerly
from .trainer import RunTrainer

_WRAPPED = ".modules_to_save.default"
_ROUNDING = 1e-2
"""A difference of the logits, relative to their size, that rounding explains in every dtype."""


class FittedHead(NamedTuple):
    """A linear layer from a logistic regression.

    Attributes:
        weight: (classes, features), float32.
        bias: (classes,), float32; zeros for a layer without a bias.
        C: scikit-learn's inverse of the L2 penalty, for features whose root mean square is 1.
        cross_validated: whether C was chosen by cross-validation. A class with one row leaves nothing to validate on.
    """

    weight: Tensor
    bias: Tensor
    C: float
    cross_validated: bool


def start_head(trainer: RunTrainer) -> dict[str, Any]:
    """Give the head the values that `head_start` says. Every process of a distributed run has to call it.

    A resumed run does the same again, because the model is evaluated as it was before training; then it takes the weights of
    its checkpoint.

    Args:
        trainer: before its first step, when the adapter changes nothing.

    Returns:
        `head` with what was done, for `preflight.report` and the record; empty for "random".

    Raises:
        ConfigError: the logits are not one linear layer of something, or there is nothing to fit: all rows have one class.
    """
    run, config = trainer.run, trainer.run.config
    if config.head_start == "random":
        return {}
    train = run.examples["train"].select(planned_rows(trainer))
    with eagerly(config.compile):
        name, layer = find_head(trainer, train)
        fitted = None
        if config.head_start == "logistic":
            targets = list(train["labels"])
            if len(set(targets)) < 2:
                what = f"the {len(targets):,} rows that the run sees have one class, so there is no head to fit"
                raise ConfigError(what, where="--head-start", remedy="use --head-start random, or let the run see more rows")
            features = head_features(trainer, layer, train).numpy()
            fitted = fit_head(features, targets, layer.out_features, intercept=layer.bias is not None)
    with torch.no_grad():
        for kind, parameter in layer.named_parameters():
            parameter.zero_() if fitted is None else parameter.copy_(getattr(fitted, kind))
            broadcast(parameter.data)  # from the main process: on another machine the fit may round differently
    found: dict[str, Any] = {"start": config.head_start, "layer": name, "replaced": f"{name}.weight" not in run.new}
    if fitted is not None:
        found |= {"rows": len(train), "C": fitted.C, "cross_validated": fitted.cross_validated}
    return {"head": found}


def find_head(trainer: RunTrainer, examples: Any) -> tuple[str, nn.Linear]:
    """The linear layer that makes a classifier's logits, and its name in the base model.

    It is checked on a batch that its weight and bias give the logits of its inputs.

    Args:
        trainer: of a classifier.
        examples: a `datasets.Dataset` of the model's inputs.

    Raises:
        ConfigError: there is none.
    """
    run, model = trainer.run, trainer.model
    batch = examples.select(range(min(len(examples), run.config.batch_size)))
    logits = class_logits(model, batch, run.collate, run.config.batch_size)
    for name, layer in reversed(list(run.model.named_modules())):
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad and layer.out_features == logits.shape[1]:
            features = head_features(trainer, layer, batch)
            weight, bias = (None if p is None else p.detach().float().cpu() for p in (layer.weight, layer.bias))
            assert weight is not None
            if features.shape[1:] == weight.shape[1:]:
                difference = nn.functional.linear(features, weight, bias) - logits
                if difference.norm() <= _ROUNDING * logits.norm():
                    return name.removeprefix("base_model.model.").replace(_WRAPPED, ""), layer
    what = f"the logits of {type(run.model.get_base_model()).__name__} are not one linear layer of its features"
    raise ConfigError(what, where=f"--head-start {run.config.head_start}", remedy="use --head-start random")


def head_features(trainer: RunTrainer, layer: nn.Linear, examples: Any) -> Tensor:
    """The inputs of the layer that makes the logits, pooled as the model pools.

    Args:
        layer: from `find_head`.
        examples: a `datasets.Dataset` of the model's inputs. Its labels are not used.

    Returns:
        (len(examples), layer.in_features), float32, on the CPU.
    """
    with _passing_through(layer):
        return class_logits(trainer.model, examples, trainer.run.collate, trainer.run.config.batch_size)


def fit_head(features: NDArray[np.float32], targets: Sequence[int], classes: int, *, intercept: bool = True) -> FittedHead:
    """A linear layer from a logistic regression, whose L2 penalty is chosen by cross-validation.

    With two classes scikit-learn fits one score; half of it goes to either logit. A class that no row has gets weights of zero,
    and as bias the lowest logit of all rows.

    Args:
        features: (rows, features).
        targets: class indices, at least two different ones.
        classes: the number of classes.
        intercept: whether the layer has a bias.
    """
    scale = 1 / max(float(np.sqrt(np.square(features).mean())), 1e-12)
    model = logistic_regression(features * scale, targets, intercept=intercept)
    coefficients, offsets = model.coef_ * scale, np.broadcast_to(model.intercept_, len(model.coef_))
    if len(coefficients) == 1:
        coefficients, offsets = (np.concatenate([-one, one]) / 2 for one in (coefficients, offsets))
    weight, bias = np.zeros((classes, features.shape[1]), np.float32), np.zeros(classes, np.float32)
    if intercept:
        bias[:] = (features @ coefficients.T + offsets).min()
    weight[model.classes_], bias[model.classes_] = coefficients, offsets
    chosen = getattr(model, "C_", None)
    C = float(model.C if chosen is None else np.ravel(chosen)[0])
    return FittedHead(torch.from_numpy(weight), torch.from_numpy(bias), C, chosen is not None)


def describe(found: dict[str, Any]) -> str:
    """What `start_head` did, in words.

    >>> describe({"start": "zero", "layer": "classifier", "replaced": False})
    'classifier starts at zero'
    >>> describe({"start": "logistic", "layer": "score", "replaced": False, "rows": 96, "C": 0.1, "cross_validated": True})
    'score starts as logistic regression on the features of 96 training rows (C = 0.1, by cross-validation)'
    """
    text = f"{found['layer']} starts at zero"
    if found["start"] == "logistic":
        how = "by cross-validation" if found["cross_validated"] else "not cross-validated: a class has one row"
        text = f"{found['layer']} starts as logistic regression on the features of {found['rows']:,} training rows "
        text += f"(C = {found['C']:g}, {how})"
    return text + (", in place of the values that the base was trained to" if found["replaced"] else "")


@contextmanager
def _passing_through(layer: nn.Linear) -> Iterator[None]:
    """Let a layer return its input within a `with` block."""
    handle = layer.register_forward_hook(lambda module, args, output: args[0])
    try:
        yield
    finally:
        handle.remove()
