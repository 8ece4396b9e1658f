"""The rule broken on purpose: a property must catch every break."""

import functools

import pytest
import torch

from alloralib.ops import lowrank, reference, scale
from alloralib.ops.linear import lora_linear
from alloralib.ops.scale import row_norms

from .properties import CHECKS, Problem

# square layers too, where a scale per column would at least have the right shape
PROBLEMS = [Problem.random(seed, 6, n1, n2, 3, eta=2.0) for seed, (n1, n2) in enumerate([(5, 5), (8, 8), (4, 7)])]


def failures(impl) -> set[str]:
    failed = set()
    for check in CHECKS:
        for p in PROBLEMS:
            try:
                check(impl, p)
            except (AssertionError, RuntimeError):
                failed.add(check.__name__)
    return failed


def norm_squared_under_the_root(monkeypatch):
    monkeypatch.setattr(scale, "row_norms", lambda A, B: row_norms(A, B) ** 2)
    return lora_linear


def input_gradient_scaled_too(monkeypatch):
    right = lowrank.lowrank_backward

    def wrong(*args, **kwargs):
        grads = right(*args, **kwargs)
        return grads._replace(P_X=grads.P_A)

    monkeypatch.setattr("alloralib.ops.linear.lowrank_backward", wrong)
    return lora_linear


def scale_per_column(monkeypatch):
    monkeypatch.setattr(scale, "row_norms", lambda A, B: torch.linalg.vector_norm(B @ A, dim=0)[: B.shape[0]])
    return lora_linear


def scale_not_detached(monkeypatch):
    def wrong(x, W, bias, A, B, *, gradient, eta):
        s = reference.scale(reference.row_norms(A, B), eta)
        value = x @ (B @ A).detach().T
        trained = s * (x.detach() @ (B @ A).T)
        return x @ W.T + value + trained - trained.detach()

    return wrong


def alpha_over_r_left_in(monkeypatch):
    return functools.partial(lora_linear, scaling=2.0)


def scale_outside_the_sum(monkeypatch):
    """dL/dA from the plain gradient, rescaled by one number."""
    right = lowrank.lowrank_backward

    def wrong(*args, **kwargs):
        grads = right(*args, **kwargs)
        plain = grads.P_X * (grads.P_A.norm() / grads.P_X.norm())
        return grads._replace(P_A=plain)

    monkeypatch.setattr("alloralib.ops.linear.lowrank_backward", wrong)
    return lora_linear


def eta_not_squared(monkeypatch):
    monkeypatch.setattr(scale, "scale", lambda n, eta: (n + 1 / eta) ** -0.5)
    return lora_linear


MUTANTS = {
    norm_squared_under_the_root: "gradient_of_B_is_loras_times_s",
    input_gradient_scaled_too: "gradient_of_x_is_loras",
    scale_per_column: "gradient_of_B_is_loras_times_s",
    scale_not_detached: "gradient_of_B_is_loras_times_s",
    alpha_over_r_left_in: "value_is_lora_without_alpha",
    scale_outside_the_sum: "gradient_of_A_has_s_inside_the_sum",
    eta_not_squared: "scale_is_eta_at_zero",
}


def test_the_rule_itself_passes() -> None:
    assert failures(lora_linear) == set()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_mutant_is_caught(mutant, monkeypatch) -> None:
    assert MUTANTS[mutant] in failures(mutant(monkeypatch))
