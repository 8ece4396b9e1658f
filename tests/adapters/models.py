"""Tiny random models of real architectures, and an oracle that uses no code of ours: stock PEFT LoRA.

ALLoRA does not change the gradient of any layer's input, so in a whole model each layer sees LoRA's own G, and
dL/dB_i must be s_i times what stock LoRA gets at the same weights.
"""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from alloralib.adapters.layers import AlloraLayer
from alloralib.ops import reference


def llama(tie: bool = False, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tie, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    return GPT2LMHeadModel(config).eval()


def bert(labels: int = 3) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=labels,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


class Convs(nn.Module):
    """One convolution of each dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv1d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(2, 4, 3, stride=2, padding="valid")
        self.three = nn.Conv3d(2, 4, 2)
        self.same = nn.Conv2d(4, 4, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x.view(2, 3, -1))).flatten(1)
        z = torch.tanh(self.same(torch.tanh(self.two(y.view(2, 2, 12, -1))))).flatten(1)
        return self.three(y.view(2, 2, 4, 6, -1)).mean() + z.mean()


def tokens(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(1))


def randomise(model: nn.Module, adapter: str = "default", size: float = 0.3, seed: int = 7) -> None:
    """Give every factor of the adapter random values; a new adapter has B = 0."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name and f".{adapter}" in name:
            p.data.copy_(size * torch.randn(p.shape, generator=g))


def gradients(model: nn.Module, inputs: dict[str, Tensor] | Tensor) -> dict[str, Tensor]:
    """Gradients by parameter name after one backward pass: of the loss, of the logits' squares, or of the output."""
    model.zero_grad()
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    if not isinstance(out, Tensor):
        out = out.logits.float().square().mean() if out.loss is None else out.loss
    out.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def lora_twin(base: nn.Module, allora: PeftModel, **settings) -> PeftModel:
    """The same weights under stock PEFT LoRA with alpha = r, no dropout."""
    ours = allora.peft_config["default"]
    twin = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=ours.r, lora_alpha=ours.r, target_modules=ours.target_modules, **settings)
    ).eval()
    assert not any(isinstance(m, AlloraLayer) for m in twin.modules())
    missing = twin.load_state_dict(allora.state_dict(), strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    return twin


def printed_scale(A: Tensor, B: Tensor, eta: float) -> Tensor:
    """s as section 4.2 prints it, for weights of any layer type."""
    return reference.scale(reference.row_norms(A.flatten(1).double(), B.flatten(1).double()), eta)


def assert_rule(allora: PeftModel, grads: dict[str, Tensor], lora_grads: dict[str, Tensor], eta: float) -> int:
    """Assert that every dL/dB is LoRA's times s, row by row, and that some s is not one. Returns the number of layers."""
    weights = dict(allora.named_parameters())
    compared, largest = 0, 0.0
    for name, grad in grads.items():
        kind = next((k for k in ("lora_B", "lora_embedding_B") if f".{k}." in name), None)
        if kind is None:
            continue
        A, B = weights[name.replace("_B.", "_A.")], weights[name]
        s = printed_scale(A.detach(), B.detach(), eta).float()
        expected = lora_grads[name] * s.view(-1, *(1,) * (grad.dim() - 1))
        torch.testing.assert_close(grad, expected, rtol=2e-4, atol=1e-6 + 2e-5 * expected.abs().max().item(), msg=name)
        largest = max(largest, (s - 1).abs().max().item())
        compared += 1
    assert largest > 0.05
    return compared
