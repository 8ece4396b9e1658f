"""The properties of ALLoRA's gradients (section 4.2) on the fused linear layer, with random inputs."""

import pytest
import torch
from hypothesis import given

from alloralib.ops.linear import lora_linear

from .properties import CHECKS, Problem, problems, solve


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@given(p=problems)
def test_property(check, p: Problem) -> None:
    check(lora_linear, p)


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_gradcheck_fails_on_A_and_B_exactly_where_the_scale_is_not_one(size: float) -> None:
    p = Problem.random(0, 4, 5, 3, 2, eta=1.0, size=size)
    A, B = p.A.requires_grad_(), p.B.requires_grad_()
    x = p.x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lora_linear(x, p.W, None, p.A.detach(), p.B.detach(), eta=1.0), x)
    for wrong, arguments in {
        "A": lambda A: lora_linear(p.x.detach(), p.W, None, A, p.B.detach(), eta=1.0),
        "B": lambda B: lora_linear(p.x.detach(), p.W, None, p.A.detach(), B, eta=1.0),
    }.items():
        leaf = A if wrong == "A" else B
        plain = size == 0.0  # B = 0 and eta = 1: the scale is one
        assert torch.autograd.gradcheck(arguments, leaf, raise_exception=False) is plain


def test_gradcheck_passes_for_the_plain_gradient() -> None:
    p = Problem.random(0, 4, 5, 3, 2, eta=1.0)
    leaves = [t.requires_grad_() for t in (p.x, p.W, p.A, p.B)]
    assert torch.autograd.gradcheck(lambda x, W, A, B: lora_linear(x, W, None, A, B, gradient="plain", scaling=1.5), leaves)


def test_lora_x_eta_is_a_factor_on_the_output() -> None:
    """eta f with the plain gradient: under SGD the same as lr * eta and A-init * sqrt(eta) (method.md, section 4)."""
    p = Problem.random(3, 6, 5, 4, 2, eta=2.0)
    lr, eta = 0.05, 2.25

    def train(A, B, factor, lr):
        A, B = A.clone(), B.clone()
        for _ in range(5):
            A.requires_grad_(), B.requires_grad_()
            y = lora_linear(p.x, p.W, None, A, B, gradient="plain", scaling=factor)
            grads = torch.autograd.grad((y - p.G).square().mean(), [A, B])
            A, B = ((t - lr * g).detach() for t, g in zip((A, B), grads, strict=True))
        return factor * B @ A

    zero = torch.zeros_like(p.B)
    torch.testing.assert_close(train(p.A, zero, eta, lr), train(p.A * eta**0.5, zero, 1.0, lr * eta))


def test_solve_is_not_vacuous() -> None:
    """The scale matters in the problems above: ALLoRA's gradients differ from LoRA's."""
    p = Problem.random(1, 5, 6, 7, 3, eta=2.0)
    ours = solve(lora_linear, p)
    plain = solve(lambda *a, **k: lora_linear(*a, **{**k, "gradient": "plain"}), p)
    torch.testing.assert_close(ours[:2], plain[:2])
    assert not torch.allclose(ours[2], plain[2])
    assert not torch.allclose(ours[3], plain[3])
