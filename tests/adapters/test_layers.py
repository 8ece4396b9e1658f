"""Gradients of whole models, for every layer type, against stock PEFT LoRA with the same weights."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from alloralib import AlloraConfig, make_config
from alloralib.adapters.layers import Linear
from alloralib.errors import LayerError

from .models import Convs, assert_rule, bert, gpt2, gradients, llama, lora_twin, mixtral, randomise, tokens


def gemma() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


LM = {"input_ids": tokens(), "labels": tokens()}
CASES = {
    "llama": (llama, LM, "all-linear", 14),
    "llama-embedding": (llama, LM, ["embed_tokens", "lm_head", "q_proj"], 4),
    "gemma-scaled-embedding": (gemma, LM, ["embed_tokens", "v_proj"], 3),
    "gpt2-conv1d": (gpt2, LM, ["c_attn", "c_proj", "c_fc", "wte"], 9),
    "bert": (bert, {"input_ids": tokens(), "labels": torch.tensor([0, 2])}, ["query", "dense"], 9),
    "convs": (Convs, torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0)), ["one", "two", "three", "same"], 4),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_loras_times_s(name: str) -> None:
    build, inputs, targets, layers = CASES[name]
    base = build()
    model = get_peft_model(copy.deepcopy(base), AlloraConfig(r=3, eta=1.7, target_modules=targets)).eval()
    randomise(model)
    twin = lora_twin(base, model, fan_in_fan_out=name.startswith("gpt2"))
    grads, lora_grads = gradients(model, inputs), gradients(twin, inputs)
    assert grads.keys() == lora_grads.keys()
    assert assert_rule(model, grads, lora_grads, 1.7) == layers


@pytest.mark.parametrize("kind", ["module hook", "dropout", "two adapters"])
def test_the_unfused_path_gives_the_same(kind: str) -> None:
    """Where the fused node cannot be used, the frozen layer is called; the gradients are the same."""
    base = llama()
    model = get_peft_model(copy.deepcopy(base), AlloraConfig(r=3, eta=1.7, target_modules="all-linear")).eval()
    randomise(model)
    fused = gradients(model, LM)
    calls = []
    if kind == "module hook":
        for module in model.modules():
            if isinstance(module, Linear):
                module.base_layer.register_forward_hook(lambda *a: calls.append(1))
    elif kind == "dropout":
        for module in model.modules():
            if isinstance(module, Linear):
                module.lora_dropout["default"] = Counting(calls)
    else:
        model.add_adapter("other", AlloraConfig(r=2, target_modules="all-linear"))  # B = 0: adds nothing
        model.base_model.set_adapter(["default", "other"])
        calls.append(1)
    unfused = gradients(model, LM)
    assert calls
    for key, grad in fused.items():
        torch.testing.assert_close(unfused[key], grad, rtol=1e-4, atol=1e-6, msg=key)


class Counting(nn.Dropout):
    """Dropout at rate .5 that drops nothing and counts its calls."""

    def __init__(self, calls: list) -> None:
        super().__init__(0.5)
        self.training, self.calls = True, calls

    def forward(self, x):
        self.calls.append(1)
        return x


def test_experts_follow_the_rule() -> None:
    base = mixtral()
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    ours = AlloraConfig(r=2, eta=1.7, target_modules=[], target_parameters=targets)
    model = get_peft_model(copy.deepcopy(base), ours).eval()
    randomise(model)
    stock = LoraConfig(r=2, lora_alpha=2, target_modules=[], target_parameters=targets)
    twin = get_peft_model(copy.deepcopy(base), stock).eval()
    twin.load_state_dict(model.state_dict())
    inputs = {"input_ids": tokens(4, 16), "labels": tokens(4, 16)}
    torch.testing.assert_close(model(**inputs).logits, twin(**inputs).logits, rtol=1e-4, atol=1e-5)
    grads, lora_grads = gradients(model, inputs), gradients(twin, inputs)
    weights, compared = dict(model.named_parameters()), 0
    for name in (n for n in grads if "lora_B" in n):
        A, B = weights[name.replace("_B.", "_A.")].detach(), weights[name].detach()
        A3 = A.view(4, 2, -1)  # expert, rank, n2
        B3 = B.view(B.shape[0], 2, 4)  # n1, rank, expert
        for e in range(4):
            s = (torch.linalg.vector_norm(B3[:, :, e] @ A3[e], dim=1) + 1 / 1.7**2) ** -0.5
            expected = lora_grads[name].view_as(B3)[:, :, e] * s[:, None]
            torch.testing.assert_close(grads[name].view_as(B3)[:, :, e], expected, rtol=2e-4, atol=1e-7)
            compared += 1
    assert compared == 16


def test_a_weight_as_target_parameter_trains_as_its_layer_does() -> None:
    """target_parameters on an ordinary two-dimensional weight: the same gradients as target_modules gives."""
    by_module = get_peft_model(llama(), AlloraConfig(r=3, eta=1.7, target_modules=["q_proj"])).eval()
    config = AlloraConfig(r=3, eta=1.7, target_modules=[], target_parameters=["q_proj.weight"])
    by_parameter = get_peft_model(llama(), config).eval()
    randomise(by_module)
    by_parameter.load_state_dict(by_module.state_dict())
    expected, grads = gradients(by_module, LM), gradients(by_parameter, LM)
    assert len(grads) == 4
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)


def test_grouped_convolution() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    model = get_peft_model(copy.deepcopy(base), AlloraConfig(r=4, eta=1.7, target_modules=["0"]))
    randomise(model)
    with pytest.warns(UserWarning, match="groups > 1"):
        twin = lora_twin(base, model)
    x = torch.randn(2, 4, 5, 5)
    grads, lora_grads = gradients(nn.Sequential(model, Sum()), x), gradients(nn.Sequential(twin, Sum()), x)
    A, B = model.base_model.model[0].lora_A.default.weight, model.base_model.model[0].lora_B.default.weight
    name = next(n for n in grads if "lora_B" in n)
    for g in range(2):
        rows, ranks = slice(4 * g, 4 * g + 4), slice(2 * g, 2 * g + 2)
        s = (torch.linalg.vector_norm(B[rows].flatten(1) @ A[ranks].flatten(1), dim=1) + 1 / 1.7**2) ** -0.5
        torch.testing.assert_close(grads[name][rows], lora_grads[name][rows] * s.view(-1, 1, 1, 1), rtol=1e-4, atol=1e-6)


class Sum(nn.Module):
    def forward(self, x):
        return x.square().sum()


class Odd(nn.Linear):
    """A linear layer with a forward of its own."""


REFUSED = {
    "a subclass": (nn.Sequential(Odd(4, 4)), "Odd"),
    "multi-head attention": (nn.Sequential(nn.MultiheadAttention(4, 2)), "MultiheadAttention"),
    "its output projection": (nn.ModuleDict({"0": nn.MultiheadAttention(4, 2).out_proj}), "NonDynamicallyQuantizableLinear"),
    "transposed convolution": (nn.Sequential(nn.ConvTranspose1d(4, 4, 3)), "ConvTranspose1d"),
    "dilation": (nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2)), "dilation"),
    "circular padding": (nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")), "padding"),
    "even kernel, same": (nn.Sequential(nn.Conv1d(4, 4, 2, padding="same")), "even kernel"),
    "sparse embedding": (nn.Sequential(nn.Embedding(8, 4, sparse=True)), "sparse"),
    "max_norm embedding": (nn.Sequential(nn.Embedding(8, 4, max_norm=1.0)), "max_norm"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:'same' padding")
def test_untested_layers_are_refused_by_name(name: str) -> None:
    model, match = REFUSED[name]
    with pytest.raises(LayerError, match=match) as caught:
        get_peft_model(model, AlloraConfig(r=2, target_modules=["0"]))
    assert "remedy" in str(caught.value)


def test_quantized_and_tensor_parallel_layers_are_refused() -> None:
    quantized = nn.Sequential(nn.Linear(4, 4))
    quantized[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(LayerError, match="floating-point"):
        get_peft_model(quantized, AlloraConfig(r=2, target_modules=["0"]))
    parallel = nn.Sequential(nn.Linear(4, 4))
    parallel[0]._hf_tp_plan = "colwise"
    with pytest.raises(LayerError, match="tensor-parallel"):
        get_peft_model(parallel, AlloraConfig(r=2, target_modules=["0"]))


@pytest.mark.parametrize("method", ["allora-od", "asf-lora"])
def test_methods_that_read_the_output_are_refused_on_parameters(method: str) -> None:
    with pytest.raises(LayerError, match="target modules instead"):
        get_peft_model(mixtral(), make_config(method, r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"]))


def test_rank_beyond_the_smaller_side_warns_and_trains() -> None:
    with pytest.warns(UserWarning, match="smaller side of a 3 x 5 layer"):
        model = get_peft_model(nn.Sequential(nn.Linear(5, 3), Sum()), AlloraConfig(r=4, target_modules=["0"]))
    randomise(model)
    assert len(gradients(model, torch.randn(2, 5))) == 2


def test_the_base_bias_is_trained_on_request() -> None:
    base = nn.Sequential(nn.Linear(5, 3), Sum())
    model = get_peft_model(base, AlloraConfig(r=2, target_modules=["0"], bias="all"))
    assert any(name.endswith("base_layer.bias") for name in gradients(model, torch.randn(2, 5)))
