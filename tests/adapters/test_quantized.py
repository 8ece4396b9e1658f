"""The rule on quantized layers of bitsandbytes and torchao, on a CPU; and the layers that are refused."""

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn

from alloralib import AlloraConfig, enable_allora, make_config
from alloralib.adapters.layers import AlloraLayer
from alloralib.errors import LayerError, MergeError
from alloralib.ops import reference

from .models import assert_rule, gradients, randomise, tokens

bnb = pytest.importorskip("bitsandbytes")
ao = pytest.importorskip("torchao.quantization")

# PEFT warns that merging into few bits rounds, and that torchao layers quantized by hand cannot be merged.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(Merge|Unmerge) lora module"),
    pytest.mark.filterwarnings("ignore:TorchaoLinear was instantiated without"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
OUT, IN = 64, 128


def four_bit(kind: str, twice: bool = False) -> nn.Module:
    layer = bnb.nn.Linear4bit(IN, OUT, quant_type=kind, compute_dtype=torch.float32, compress_statistics=twice)
    return layer.to("cpu")


def eight_bit(threshold: float = 0.0) -> nn.Module:
    return bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False, threshold=threshold).to("cpu")


def torchao(config) -> nn.Module:
    layer = nn.Linear(IN, OUT).requires_grad_(False)
    ao.quantize_(layer, config)
    return layer


LAYERS = {
    "nf4": partial(four_bit, "nf4"),
    "nf4-double": partial(four_bit, "nf4", True),
    "fp4": partial(four_bit, "fp4"),
    "int8": eight_bit,
    "int8-outliers": partial(eight_bit, 6.0),
    "ao-int8": lambda: torchao(ao.Int8WeightOnlyConfig()),
    "ao-float8": lambda: torchao(ao.Float8WeightOnlyConfig()),
    "ao-int4": lambda: torchao(ao.IntxWeightOnlyConfig(torch.int4)),
}
BITSANDBYTES = [name for name in LAYERS if not name.startswith("ao-")]


def base(kind: str) -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(LAYERS[kind]())
    model.is_loaded_in_4bit = "fp4" in kind or "nf4" in kind  # what transformers notes, and PEFT's own LoRA asks for
    model.is_loaded_in_8bit = kind.startswith("int8")
    return model


def stored(model: nn.Module) -> list[torch.Tensor]:
    """The frozen weight as it is stored."""
    layer = next(m for m in model.modules() if hasattr(m, "weight") and not isinstance(m, AlloraLayer))
    weight = layer.weight.data
    return [getattr(weight, "qdata", weight).clone(), layer.bias.detach().clone()]


def weight_of(layer: nn.Module) -> torch.Tensor:
    """The matrix that the frozen layer multiplies by, measured from its outputs."""
    with torch.no_grad():
        return (layer(torch.eye(IN)) - layer.bias).mT


def adapted(kind: str, **settings) -> PeftModel:
    model = get_peft_model(base(kind), AlloraConfig(r=3, eta=1.7, target_modules=["0"], **settings))
    randomise(model)
    return model


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_the_reference_on_the_dequantized_weight(kind: str) -> None:
    model = adapted(kind)
    layer = model.base_model.model[0]
    assert isinstance(layer, AlloraLayer)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5, IN, generator=g, requires_grad=True)
    upstream = torch.randn(5, OUT, generator=g)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    ours = torch.autograd.grad((model(x) * upstream).sum(), [A, B, x])
    W = weight_of(layer.base_layer)
    expected = torch.autograd.grad((reference.linear(x, W, None, A, B, eta=1.7) * upstream).sum(), [A, B, x])
    for got, want, name in zip(ours[:2], expected[:2], "AB", strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, msg=name)
    # bitsandbytes' 8-bit layer rounds its input, so its answers to the unit matrix give W to three digits
    tolerance = 2e-2 if kind.startswith("int8") else 1e-4
    torch.testing.assert_close(ours[2], expected[2], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_of_B_are_stock_loras_times_s_and_the_input_gradient_is_stock_loras(kind: str) -> None:
    """The same weights under PEFT's own layer for this base; the input gradients differ by rounding at most."""
    model = adapted(kind)
    twin = get_peft_model(base(kind), LoraConfig(r=3, lora_alpha=3, target_modules=["0"]))
    randomise(twin)
    assert not any(isinstance(m, AlloraLayer) for m in twin.modules())
    g = torch.Generator().manual_seed(1)
    x, upstream = torch.randn(5, IN, generator=g), torch.randn(5, OUT, generator=g)
    found = []
    for m in (model, twin):
        inputs = x.clone().requires_grad_()
        layer = m.base_model.model[0]
        found.append(torch.autograd.grad((m(inputs) * upstream).sum(), [layer.lora_B["default"].weight, inputs]))
    s = reference.scale(model.base_model.model[0].adapter_row_norms("default"), 1.7)
    assert (s - 1).abs().max() > 0.05
    torch.testing.assert_close(found[0][0], found[1][0] * s[:, None], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_loss_falls_the_base_stays_and_stock_peft_loads_it(kind: str, apply_to: str, tmp_path) -> None:
    model = get_peft_model(base(kind), AlloraConfig(r=3, eta=1.7, target_modules=["0"], apply_to=apply_to))
    before = stored(model)
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(32, IN, generator=g), torch.randn(32, OUT, generator=g)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for was, is_now in zip(before, stored(model), strict=True):
        assert torch.equal(was, is_now)
    model.save_pretrained(tmp_path)
    (tmp_path / "allora_config.json").unlink()
    again = PeftModel.from_pretrained(base(kind), tmp_path)
    assert not any(isinstance(m, AlloraLayer) for m in again.modules())
    torch.testing.assert_close(again.train()(x), model.train()(x))
    with torch.no_grad():  # bitsandbytes has bfloat16 kernels of its own for evaluation, which our layers do not use
        theirs, ours = again.eval()(x), model.eval()(x)
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_training_goes_on_after_an_evaluation(kind: str) -> None:
    """bitsandbytes repacks a 4-bit weight in the first evaluation on some CPUs; if not prevented, no gradient comes back."""
    model = adapted(kind)
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(1))

    def input_gradient() -> torch.Tensor:
        inputs = x.clone().requires_grad_()
        return torch.autograd.grad(model.train()(inputs).square().sum(), inputs)[0]

    before, weight = input_gradient(), stored(model)
    with torch.no_grad():
        model.eval()(x)
    assert torch.equal(stored(model)[0], weight[0])
    torch.testing.assert_close(input_gradient(), before)


@pytest.mark.skipif(not bnb.functional.has_avx512bf16(), reason="only a CPU with AVX512-BF16 repacks")
def test_a_base_that_was_evaluated_is_refused_where_its_weight_was_repacked() -> None:
    model = base("nf4")
    model.eval()(torch.randn(2, IN))
    with pytest.raises(LayerError, match="repacked"):
        get_peft_model(model, AlloraConfig(r=2, target_modules=["0"]))


@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_merging_gives_the_same_bits_as_stock_lora(kind: str) -> None:
    """A merged weight is rounded to the base's few bits, to the same ones as stock LoRA's; and unmerging restores it."""
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(1))
    model = adapted(kind)
    twin = get_peft_model(base(kind), LoraConfig(r=3, lora_alpha=3, target_modules=["0"]))
    randomise(twin)
    model(x), twin(x)
    unmerged = model(x)
    for m in (model, twin):
        m.merge_adapter()
    assert torch.equal(stored(model)[0], stored(twin)[0])
    merged = model(x)
    torch.testing.assert_close(merged, twin(x))
    off = (merged - unmerged).norm() / unmerged.norm()
    assert off < (0.2 if "4" in kind else 0.03)
    for m in (model, twin):
        m.unmerge_adapter()
    assert torch.equal(stored(model)[0], stored(twin)[0])


@pytest.mark.parametrize("kind", ["nf4", "int8", "ao-int8"])
def test_what_cannot_be_merged_is_refused(kind: str) -> None:
    model = get_peft_model(base(kind), make_config("asf-lora", r=3, target_modules=["0"]))
    model(torch.randn(2, IN))
    with pytest.raises(MergeError, match="no weight"):
        model.merge_adapter()


def test_a_torchao_layer_quantized_by_hand_is_not_merged() -> None:
    with pytest.raises(MergeError, match="TorchAoConfig"):
        adapted("ao-int8").merge_adapter()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_second_adapter_and_enabled_stock_layers_follow_the_rule(kind: str) -> None:
    first = adapted(kind)
    first.add_adapter("second", AlloraConfig(r=2, eta=1.0, target_modules=["0"]))
    model = get_peft_model(base(kind), LoraConfig(r=3, target_modules=["0"]))
    with pytest.raises(LayerError, match="enable_allora"):
        model.add_adapter("second", AlloraConfig(r=2, eta=1.0, target_modules=["0"]))
    model = get_peft_model(base(kind), LoraConfig(r=3, target_modules=["0"]))
    assert enable_allora(model) == 1
    model.add_adapter("second", AlloraConfig(r=2, eta=1.0, target_modules=["0"]))
    for m in (first, model):
        m.set_adapter("second")
        randomise(m, "second")
        x = torch.randn(5, IN, generator=torch.Generator().manual_seed(1))
        layer = m.base_model.model[0]
        assert set(layer.lora_variant) == ({"default", "second"} if m is first else {"second"})
        B = layer.lora_B["second"].weight
        ours = torch.autograd.grad(m(x).square().sum(), B)[0]
        held = layer.lora_variant.pop("second")
        lora_grads = torch.autograd.grad(m(x).square().sum(), B)[0]
        layer.lora_variant["second"] = held
        s = reference.scale(layer.adapter_row_norms("second"), 1.0)
        torch.testing.assert_close(ours, lora_grads * s[:, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_copy_computes_the_same(kind: str) -> None:
    model = adapted(kind)
    x = torch.randn(5, IN)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def unquantized_four_bit() -> nn.Module:
    return bnb.nn.Linear4bit(IN, OUT)


def sixteen_bit_weights() -> nn.Module:
    return bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=True).to("cpu")


REFUSED = {
    "4-bit, not quantized yet": (unquantized_four_bit, "not quantized yet"),
    "8-bit with 16-bit weights": (sixteen_bit_weights, "16-bit weight"),
    "4-bit embedding": (lambda: bnb.nn.EmbeddingNF4(IN, OUT), "EmbeddingNF4"),
    "8-bit activations": (lambda: torchao(ao.Int8DynamicActivationInt8WeightConfig()), "quantizes the activations"),
    "8-bit activations, 4-bit weight": (
        lambda: torchao(ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4)),
        "quantizes the activations",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(LayerError, match=reason) as caught:
        get_peft_model(nn.Sequential(build()), AlloraConfig(r=2, target_modules=["0"]))
    assert "remedy" in str(caught.value)


def test_quantized_activations_have_no_gradient_in_torchao() -> None:
    """The reason for the refusal. If torchao adds a backward pass for them, this fails, and the refusal can be removed."""
    layer = torchao(ao.Int8DynamicActivationInt8WeightConfig())
    assert not layer(torch.randn(2, IN, requires_grad=True)).requires_grad


def test_an_enabled_layer_with_quantized_activations_refuses_too() -> None:
    model = get_peft_model(
        nn.Sequential(torchao(ao.Int8DynamicActivationInt8WeightConfig())), LoraConfig(r=2, target_modules=["0"])
    )
    enable_allora(model)
    with pytest.raises(LayerError, match="quantizes the activations"):
        model.add_adapter("second", AlloraConfig(r=2, target_modules=["0"]))


def load(path: str, quantized) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, quantization_config=quantized, device_map="cpu", dtype=torch.float32)


def loading(kind: str):
    from transformers import BitsAndBytesConfig, TorchAoConfig

    return {
        "4bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
        "8bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
        "torchao": lambda: TorchAoConfig(ao.Int8WeightOnlyConfig()),
    }[kind]()


@pytest.mark.parametrize("kind", ["4bit", "8bit", "torchao"])
def test_a_model_that_transformers_loads_quantized_trains(kind: str, tiny_llama: str, tmp_path) -> None:
    model = prepare_model_for_kbit_training(load(tiny_llama, loading(kind)), use_gradient_checkpointing=False)
    model = get_peft_model(model, AlloraConfig(r=3, eta=1.7, target_modules="all-linear"))
    layers = [m for m in model.modules() if isinstance(m, AlloraLayer)]
    assert len(layers) == 14
    assert {type(m).__name__ for m in layers} == {
        {"4bit": "Linear4bit", "8bit": "Linear8bitLt", "torchao": "TorchaoLinear"}[kind]
    }
    batch = {"input_ids": tokens() % 20, "labels": tokens() % 20}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    losses = []
    for _ in range(8):
        losses.append(model(**batch).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.98 * losses[0]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(tiny_llama, loading(kind)), tmp_path)
    again.base_model.model.lm_head.float()
    torch.testing.assert_close(again.eval()(**batch).logits, model.eval()(**batch).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["4bit", "torchao"])
def test_the_rule_in_a_whole_quantized_model(kind: str, tiny_llama: str) -> None:
    targets = ["q_proj", "down_proj"]
    model = get_peft_model(load(tiny_llama, loading(kind)), AlloraConfig(r=3, eta=1.7, target_modules=targets)).train()
    twin = get_peft_model(load(tiny_llama, loading(kind)), LoraConfig(r=3, lora_alpha=3, target_modules=targets)).train()
    for m in (model, twin):
        randomise(m)
    batch = {"input_ids": tokens() % 20, "labels": tokens() % 20}
    assert assert_rule(model, gradients(model, batch), gradients(twin, batch), 1.7) == 4


def test_torchao_merges_what_transformers_loaded(tiny_llama: str) -> None:
    batch = {"input_ids": tokens() % 20}
    model = get_peft_model(load(tiny_llama, loading("torchao")), AlloraConfig(r=3, target_modules=["q_proj"]))
    randomise(model, size=0.1)
    unmerged = model(**batch).logits
    plain = load(tiny_llama, loading("torchao"))(**batch).logits
    model.merge_adapter()
    merged = model(**batch).logits
    assert (merged - unmerged).norm() < 0.1 * (unmerged - plain).norm()


def test_neither_library_is_needed() -> None:
    """Without both libraries, a plain model and one with stock LoRA layers can still be adapted."""
    script = (
        "import importlib.util, sys\n"
        "hidden, real = ('bitsandbytes', 'torchao'), importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name.partition('.')[0] in hidden else real(name, *a)\n"
        "sys.modules.update(dict.fromkeys(hidden))\n"  # an import of either raises
        "import torch, peft, alloralib\n"
        "model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), peft.LoraConfig(target_modules=['0']))\n"
        "alloralib.enable_allora(model)\n"
        "model.add_adapter('second', alloralib.AlloraConfig(r=2, target_modules=['0']))\n"
        "print('trained by', type(model.base_model.model[0].lora_variant['second']).__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.endswith("trained by LinearVariant\n"), ran.stderr
