"""The profiler's operations are sorted into the right categories."""

from typing import Any

import pytest

from benchmarks import measuring, profile_step


@pytest.mark.parametrize(
    ("phase", "name", "shapes", "what"),
    [
        ("forward", "aten::mm", [[512, 576], [576, 1536]], profile_step.BASE),
        ("forward", "mkldnn::_linear_pointwise", [[512, 576], [1536, 576], [], []], profile_step.BASE),
        ("backward", "mkldnn::_linear_pointwise", [[512, 1536], [576, 1536], [], []], profile_step.BASE),
        ("forward", "aten::mm", [[512, 576], [576, 16]], profile_step.H),
        ("forward", "aten::addmm_", [[512, 1536], [512, 16], [16, 1536]], profile_step.OUT),
        ("backward", "aten::mm", [[512, 1536], [1536, 32]], profile_step.P),
        ("backward", "aten::mm", [[1536, 512], [512, 16]], profile_step.GRADS),
        ("backward", "mkldnn::_linear_pointwise", [[16, 512], [1536, 512], [], []], profile_step.GRADS),
        ("backward", "aten::mm", [[16, 512], [512, 576]], profile_step.GRADS),
        ("backward", "aten::addmm_", [[512, 576], [512, 16], [16, 576]], profile_step.GRAD_X),
        ("backward", "aten::addmm_", [[512, 576], [512, 1536], [1536, 576]], profile_step.BASE),
        ("backward", "aten::mm", [[16, 576], [576, 16]], profile_step.RULE),
        ("backward", "aten::mm", [[576, 16], [16, 16]], profile_step.RULE),
        ("backward", "aten::mul", [[576, 1], [576, 16]], profile_step.RULE),
        ("backward", "aten::rsqrt", [[1536], [], []], profile_step.RULE),
        ("backward", "aten::mul", [[], []], profile_step.OTHERS),
        ("backward", "aten::mul", [[4, 128, 576], [576]], profile_step.OTHERS),
        ("forward", "aten::mm", [[512, 576], [576, 49152]], profile_step.LOGITS),
        ("update", "aten::mul_", [[16, 576], []], profile_step.OPTIMIZER),
    ],
)
def test_operations_have_categories(phase: str, name: str, shapes: Any, what: str) -> None:
    assert profile_step.category(phase, name, shapes, tokens=512, r=16, vocabulary=49152) == what


def test_the_tables_read_committed_records() -> None:
    records = measuring.read_all("profile")
    assert records
    assert len(profile_step.table(records).splitlines()) == 2 + len(profile_step.CATEGORIES)
    for record in records.values():
        assert sum(profile_step.share(record, what) for what in profile_step.CATEGORIES) == pytest.approx(1)
