"""Losses of labeled tokens equal those of transformers, on many architectures, computed in chunks if the model allows it."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from alloralib import AlloraConfig, fast_paths
from alloralib.evaluation import next_token
from alloralib.evaluation.next_token import IGNORED, score_next_tokens, why_not_chunked

from ..adapters.models import gpt2, llama, mixtral, randomise, tokens

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def roberta() -> nn.Module:  # between its last layer and the vocabulary it has a dense layer, GELU and a norm
    return RobertaForCausalLM(RobertaConfig(**SMALL, is_decoder=True))


MODELS = {
    "llama": llama,
    "llama-tied": lambda: llama(tie=True),
    "gpt2": gpt2,
    "mixtral": mixtral,
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=2)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "phi-with-bias": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    "roberta": roberta,
    "gemma2-softcapped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5)
    ),
    "cohere-scaled": lambda: CohereForCausalLM(CohereConfig(**SMALL, num_key_value_heads=2, logit_scale=0.25)),
}
CHANGES_LOGITS = {"gemma2-softcapped", "cohere-scaled"}


def batch(masked: bool, left: bool = False) -> tuple[dict, torch.Tensor]:
    ids = tokens(3, 9)
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row, length in enumerate([9, 6, 4]):
        padding = slice(0, 9 - length) if left else slice(length, 9)
        ids[row, padding], labels[row, padding], mask[row, padding] = 0, IGNORED, 0
        if masked:
            labels[row, (9 - length if left else 0) : (9 - length if left else 0) + length // 2] = IGNORED
    return {"input_ids": ids, "attention_mask": mask}, labels


def own_loss(model, inputs, labels) -> torch.Tensor:
    """The loss of transformers, summed over the tokens."""
    return model(**inputs, labels=labels).loss * (labels[:, 1:] != IGNORED).sum()


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_models_own(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for p in model.parameters():
        p.data.mul_(3)  # so that a soft cap changes the logits
    adapted = get_peft_model(model, AlloraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    randomise(adapted)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    for masked, left in [(False, False), (True, False), (True, True)]:
        inputs, labels = batch(masked, left)
        for _ in range(2):  # the first call finds out whether the model changes its logits
            found = score_next_tokens(adapted, inputs, labels)
            assert (why_not_chunked(adapted) is None) == (name not in CHANGES_LOGITS)
            expected = own_loss(adapted, inputs, labels)
            torch.testing.assert_close(found.loss.sum(), expected, rtol=1e-5, atol=1e-5)
            grads = torch.autograd.grad(found.loss.sum(), trained, allow_unused=True)
            unscaled = torch.autograd.grad(expected, trained, allow_unused=True)
            for got, right in zip(grads, unscaled, strict=True):
                if right is not None:
                    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5 * max(1.0, right.abs().max().item()))
            assert torch.equal(found.mask, labels[:, 1:] != IGNORED)
    if name in CHANGES_LOGITS:
        assert "changes its logits" in why_not_chunked(adapted)


def adapted_head() -> nn.Module:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    randomise(model)
    return model


def head_copied_for_training() -> nn.Module:
    return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))


def frozen_llama() -> nn.Module:
    return llama().requires_grad_(False)


def hooked() -> nn.Module:
    model = frozen_llama()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 0.5)
    return model


def offloaded() -> nn.Module:
    model = frozen_llama()
    right = model.lm_head.forward
    model.lm_head.forward = lambda x: right(x) * 0.5  # as accelerate does for a model on several devices
    return model


def partitioned() -> nn.Module:
    model = frozen_llama()
    model.lm_head.weight.ds_id = 0  # as DeepSpeed marks what it partitions
    return model


REFUSED = {
    "adapted": (adapted_head, "adapted"),
    "modules_to_save": (head_copied_for_training, "ModulesToSaveWrapper"),
    "trained": (llama, "is trained"),
    "hook": (hooked, "hooks"),
    "offloaded": (offloaded, "hooks"),
    "deepspeed": (partitioned, "sharded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_more_than_its_weight_is_left_alone(name: str) -> None:
    make, why = REFUSED[name]
    model = make().eval()
    assert why in why_not_chunked(model)
    inputs, labels = batch(masked=True)
    loss = score_next_tokens(model, inputs, labels).loss
    torch.testing.assert_close(loss.sum(), own_loss(model, inputs, labels))
    if name != "modules_to_save" and any(p.requires_grad for p in model.parameters()):
        loss.sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "lm_head" in n)


def test_the_switch() -> None:
    model = frozen_llama()
    inputs, labels = batch(masked=True)
    assert why_not_chunked(model) is None
    seen: list[torch.Size] = []
    hook = lambda module, args, output: seen.append(output.shape)  # noqa: E731
    with fast_paths(logits=False):
        assert "turned off" in why_not_chunked(model)
        handle = model.lm_head.register_forward_hook(hook)
        plain = score_next_tokens(model, inputs, labels).loss
        handle.remove()
    assert seen[0][-1] == 64
    assert why_not_chunked(model) is None
    torch.testing.assert_close(score_next_tokens(model, inputs, labels).loss, plain)
    assert "forward" not in vars(model.lm_head)


def test_the_head_comes_back_after_an_error() -> None:
    model = frozen_llama()
    inputs, labels = batch(masked=True)
    with pytest.raises(ValueError, match="later"):
        score_next_tokens(model, inputs, labels, call=lambda **kwargs: (_ for _ in ()).throw(ValueError("later")))
    assert "forward" not in vars(model.lm_head)
    assert why_not_chunked(model) is None


@pytest.mark.parametrize("on", [True, False])
def test_no_label_at_all(on: bool) -> None:
    model = get_peft_model(llama(), AlloraConfig(r=2, target_modules=["q_proj"]))
    inputs, labels = batch(masked=True)
    labels[:] = IGNORED
    labels[:, 0] = 5  # not used: there is no token before it
    with fast_paths(logits=on):
        found = score_next_tokens(model, inputs, labels)
    assert found.loss.shape == (0,)
    found.loss.sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


def test_only_labelled_rows_reach_the_head(monkeypatch) -> None:
    seen: list[int] = []
    right = next_token.linear_cross_entropy
    monkeypatch.setattr(next_token, "linear_cross_entropy", lambda h, *rest: (seen.append(len(h)), right(h, *rest))[1])
    inputs, labels = batch(masked=True)
    score_next_tokens(frozen_llama(), inputs, labels)
    assert seen == [int((labels[:, 1:] != IGNORED).sum())]


def test_a_shift_by_one_is_noticed(monkeypatch) -> None:
    """A mutation: all labels shifted by one position."""
    model, (inputs, labels) = frozen_llama(), batch(masked=True)
    for p in model.parameters():
        p.mul_(5)  # so that positions have different losses
    expected = own_loss(model, inputs, labels)
    torch.testing.assert_close(score_next_tokens(model, inputs, labels).loss.sum(), expected)
    monkeypatch.setattr(next_token, "pad", lambda mask, _: F.pad(mask, (1, 0)))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(score_next_tokens(model, inputs, labels).loss.sum(), expected, rtol=1e-3, atol=0)
