"""The counted operations are the operations that torch executes."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import arms
from benchmarks.flops import _first, count

from .models import LENGTH, ROWS, R, bert, llama, small_stack


def operations(arm: arms.Arm) -> int:
    aten = torch.ops.aten

    def addmm_(out: Any, a: Any, b: Any, **_: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={aten.addmm_: addmm_}) as counter:
        arm.loss().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("make", "inputs_want"), [(llama, False), (bert, False), (small_stack, True)])
def test_the_count_equals_what_torch_executes(make: Any, inputs_want: bool) -> None:
    model, batch = make()
    expected = count(model, ROWS, LENGTH, R, inputs_want=inputs_want)
    frozen = operations(arms.build("frozen", copy.deepcopy(model), batch, R))
    assert frozen == expected.frozen
    adapted = operations(arms.build("allora", copy.deepcopy(model), batch, R))
    first = products_for_inputs(model) if not inputs_want else 0
    assert adapted == frozen - first + expected.adapters + expected.rule


def products_for_inputs(model: Any) -> int:
    """Operations of the frozen model's gradients at its inputs, which an adapted model with frozen embeddings does not take."""
    layers: list[Any] = [model.get_submodule(name) for name in _first(arms.linear_names(model))]
    return sum(2 * ROWS * LENGTH * layer.in_features * layer.out_features for layer in layers)
