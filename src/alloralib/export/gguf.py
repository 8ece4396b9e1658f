"""A LoRA adapter as a GGUF file, made by llama.cpp's own converter and proven by reading it back.

llama.cpp computes W + (alpha/rank) B A with one alpha for the whole file and the rank of each tensor. An adapter with several
ranks, or with another factor than alpha/r, is rewritten first: B_l times s_l r_l / r, where s_l is the factor PEFT uses.
The converter also reorders the rows of W_q and W_k of some models (`LlamaModel.permute`: halves of rotary embeddings become
pairs), and so the rows of their B; `unpermute` reverses that. What GGUF or llama.cpp cannot hold is refused before anything is
loaded or written.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from ..adapters.factors import adapter_parameters
from ..errors import ConfigError, MergeError
from ..files import staged
from .peft import CONFIG, WEIGHTS, copy_adapter, load_stock
from .proof import Batch, Load, Proof, Trained, check_mergeable, logits
from .readers import LLAMA_CPP, reasons

CONVERTER = "convert_lora_to_gguf.py"
CONVERTER_VARIABLE = "ALLORA_LORA_TO_GGUF"
_LAYOUTS = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "SmolLM3ForCausalLM": ("smollm3", True),
    "GraniteForCausalLM": ("granite", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
    "GemmaForCausalLM": ("gemma", False),
    "Gemma2ForCausalLM": ("gemma2", False),
    "Gemma3ForCausalLM": ("gemma3", False),
    "Phi3ForCausalLM": ("phi3", False),
    "Olmo2ForCausalLM": ("olmo2", False),
}
"""Models whose adapters can be read back: GGUF's name of the architecture, and whether rows of W_q and W_k are reordered."""
_MERGED = "use --format merged, and llama.cpp's convert_hf_to_gguf.py on the result"
_ROUND_OFF = {"F32": 1e-6, "F16": 1e-3, "BF16": 8e-3}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_converter(given: str | os.PathLike[str] | None = None) -> Path:
    """llama.cpp's converter: `given`, $ALLORA_LORA_TO_GGUF, or the one on PATH.

    Raises:
        ConfigError: there is none.
    """
    found = given or os.environ.get(CONVERTER_VARIABLE) or shutil.which(CONVERTER)
    if found is None or not Path(found).is_file():
        raise ConfigError(
            f"llama.cpp's {CONVERTER} was not found" if found is None else "no such file",
            where=None if found is None else str(found),
            remedy=f"clone llama.cpp and give --converter PATH/{CONVERTER} (or set {CONVERTER_VARIABLE})",
        )
    return Path(found)


def export_gguf(
    adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], base: str,
    converter: str | os.PathLike[str] | None = None,
) -> Proof:  # fmt: skip
    """Write a GGUF adapter (float32) for llama.cpp.

    Args:
        adapter: directory of a saved adapter of a causal language model.
        output: the file to write.
        load_base, inputs: as in `merged.export_merged`.
        base: directory or hub id of the frozen model; the converter reads its config.json.
        converter: llama.cpp's script, see `find_converter`.

    Raises:
        MergeError: the adapter cannot be merged, GGUF cannot store it, or the file does not hold the adapter.
        ConfigError: the package gguf or the converter is missing, the converter failed, or `output` already exists.
    """
    check_mergeable(adapter)
    architecture, permuted = check_storable(adapter, base)
    script = find_converter(converter)
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("reading the GGUF file back needs the package gguf", remedy="pip install alloralib[gguf]")
    with staged(output) as path, tempfile.TemporaryDirectory() as scratch:
        plain, one_alpha = Path(scratch, "plain"), Path(scratch, "one-alpha")
        trained = Trained.of(adapter, load_base, inputs)
        plain.mkdir()
        copy_adapter(adapter, plain, load_base)
        model = load_stock(load_base(), plain)
        names = _names(architecture, model)
        with_one_alpha(model, plain, one_alpha)
        _convert(script, Path(str(cached_file(base, "config.json"))).parent, one_alpha, path)
        dtype = _read_back(path, model, names, architecture, permuted)
        return trained.prove(logits(model, inputs), str(output), dtype)


def check_storable(adapter: Path, base: str) -> tuple[str, bool]:
    """GGUF's name of the base's architecture, and whether its W_q and W_k are reordered.

    Raises:
        MergeError: llama.cpp cannot load such an adapter, or it is not known how it stores the base.
    """
    content = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    why = reasons(content)[LLAMA_CPP]
    if why:
        raise MergeError("a GGUF adapter cannot store " + ", ".join(why), where=str(adapter), remedy=_MERGED)
    config = AutoConfig.from_pretrained(base)
    name = (config.architectures or ["a model without a name"])[0]
    if name not in _LAYOUTS:
        more = ": llama.cpp transposes its weights, and its converter swaps A and B" if name == "GPT2LMHeadModel" else ""
        raise MergeError(
            f"an adapter of {name} cannot be written as GGUF and verified{more}",
            where=base,
            remedy=f"{_MERGED}; adapters are known of " + ", ".join(sorted(_LAYOUTS)),
        )
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        ends = sorted({end for key in file.keys() for end in ("embed_tokens", "lm_head") if f"{end}.lora_" in key})  # noqa: SIM118
    if ends and config.get_text_config().tie_word_embeddings:
        raise MergeError(
            f"the base has one tensor for embeddings and output, and llama.cpp cannot adapt one of them ({', '.join(ends)})",
            where=str(adapter),
            remedy=f"train without {' and '.join(ends)} in --target-modules, or {_MERGED}",
        )
    return _LAYOUTS[name]


def with_one_alpha(model: PeftModel, adapter: Path, target: Path) -> None:
    """Write the adapter with alpha = r. B absorbs the quotient of each layer's own factor and alpha/r_l."""
    target.mkdir()
    content = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    content |= {"lora_alpha": content["r"], "alpha_pattern": {}, "use_rslora": False}
    (target / CONFIG).write_text(json.dumps(content), encoding="utf-8")
    tensors = load_file(adapter / WEIGHTS)
    for name, layer in lora_layers(model).items():
        key, B = next((k, t) for k, t in tensors.items() if re.search(rf"\.{re.escape(name)}\.lora_(embedding_)?B", k))
        factor = layer.scaling["default"] * B.shape[1] / content["r"]
        if factor != 1:
            tensors[key] = (B.float() * factor).to(B.dtype).contiguous()
    save_file(tensors, target / WEIGHTS)


def lora_layers(model: PeftModel) -> dict[str, Any]:
    """The adapted layers, by name in the base model."""
    base: Any = model.get_base_model()
    return {name: module for name, module in base.named_modules() if hasattr(module, "lora_A") and module.scaling}


def _convert(converter: Path, base: Path, adapter: Path, output: Path) -> None:
    words = [sys.executable, str(converter), "--outfile", str(output), "--outtype", "f32", "--base", str(base), str(adapter)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not output.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ConfigError(
            "the converter failed: " + " / ".join(last),
            where=str(converter),
            remedy=f"nothing was written; update llama.cpp, or {_MERGED}",
        )


def _read_back(path: Path, model: PeftModel, names: dict[str, str], architecture: str, permuted: bool) -> torch.dtype:
    """Compare every A and B of the file with the adapter's, and replace the model's by what was read.

    Returns:
        the least precise dtype in the file.

    Raises:
        MergeError: a tensor is missing, superfluous, or different from the adapter's.
    """
    from gguf import GGUFReader

    reader: Any = GGUFReader(path)
    kind, alpha = _value(reader, "adapter.type"), _value(reader, "adapter.lora.alpha")
    found = _value(reader, "general.architecture")
    if kind != "lora" or alpha is None:
        raise _wrong(path, f"it is not a LoRA adapter (adapter.type {kind!r}, adapter.lora.alpha {alpha!r})")
    if found != architecture:
        raise _wrong(path, f"it is for {found}, and the base is {architecture}")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    expected = {f"{name}.lora_{ab}" for name in names.values() for ab in "ab"}
    if stored.keys() != expected:
        some = ", ".join(sorted(stored.keys() ^ expected)[:4])
        raise _wrong(path, f"{len(stored)} tensors where the adapter has {len(expected)}; missing or superfluous: {some}")
    for module, layer in lora_layers(model).items():
        a, b = stored[names[module] + ".lora_a"], stored[names[module] + ".lora_b"]
        factors = adapter_parameters(layer, "default")
        assert factors is not None
        A, B = factors
        read_a, read_b = _tensor(a), _tensor(b)
        if names[module].startswith("token_embd"):
            read_a = read_a.mT
        if permuted and module.endswith(("q_proj", "k_proj")):
            read_b = unpermute(read_b, _heads(model, module))
        # llama.cpp multiplies B A by alpha / rank, PEFT by `scaling`: convert B to PEFT's convention
        read_b = read_b * (alpha / B.shape[1] / layer.scaling["default"])
        for which, read, own, kept in (("A", read_a, A, a), ("B", read_b, B, b)):
            _same(read, own, f"{module}, {which}", _ROUND_OFF[kept.tensor_type.name], path)
            own.data.copy_(read)
    return _DTYPES[max((t.tensor_type.name for t in reader.tensors), key=lambda name: _ROUND_OFF[name])]


def _same(read: Tensor, own: Tensor, name: str, round_off: float, path: Path) -> None:
    if read.shape != own.shape:
        raise _wrong(path, f"{name} has shape {tuple(read.shape)} and not {tuple(own.shape)}")
    off = float((read - own.float()).abs().max())
    if not off <= round_off * max(float(own.abs().max()), 1e-30):
        raise _wrong(path, f"{name} is off by up to {off:.3g}")


def _wrong(path: Path, what: str) -> MergeError:
    return MergeError(
        f"the converted file does not hold the adapter: {what}",
        where=path.name,
        remedy=f"nothing was written; this converter does not support this model: {_MERGED}",
    )


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _tensor(tensor: Any) -> Tensor:
    """The values as float32, (rows, columns). GGUF stores shapes with the fastest dimension first."""
    if tensor.tensor_type.name not in _ROUND_OFF:
        raise MergeError(f"{tensor.name} is {tensor.tensor_type.name}, and only unquantized adapters can be verified")
    from gguf.quants import dequantize

    values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    return values.reshape([int(n) for n in reversed(tensor.shape)]).float()


def _names(architecture: str, model: PeftModel) -> dict[str, str]:
    """The GGUF name of every adapted layer."""
    import gguf

    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, int(_text_config(model).num_hidden_layers))
    names: dict[str, str] = {}
    for module in lora_layers(model):
        name = table.get_name(module + ".weight", try_suffixes=(".weight",))
        if name is None:
            raise MergeError(f"GGUF has no name for {module}", remedy=_MERGED)
        names[module] = name
    return names


def _text_config(model: PeftModel) -> Any:
    return model.get_base_model().config.get_text_config()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def _heads(model: PeftModel, module: str) -> int:
    config = _text_config(model)
    return int(config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads)


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Reverse llama.cpp's order of the rows of W_q and W_k: (heads, half, 2, ...) to (heads, 2, half, ...)."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, rows // 2, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
