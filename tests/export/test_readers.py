"""Which programs load our adapters: what docs/tools.md and `export.readers` say, and what those programs themselves do."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, ViTConfig, ViTForImageClassification

from alloralib import METHODS, AlloraConfig, make_config
from alloralib.errors import MergeError
from alloralib.export.gguf import check_storable
from alloralib.export.inspect import inspect_adapter
from alloralib.export.peft import load_stock
from alloralib.export.readers import LLAMA_CPP, PEFT, VLLM, VLLM_RANKS, reasons, summary

from ..adapters.models import bert, gpt2, llama, tokens
from .adapters import TOOLS, needs_tools, saved
from .vllm_checks import check

DOCS = Path(__file__).parents[2] / "docs" / "tools.md"
IMAGE_HEAD = {"modules_to_save": ["classifier"], "exclude_modules": ["classifier"]}


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **shape)).eval()


KINDS = {
    "language model": (llama, {"target_modules": ["q_proj", "k_proj", "down_proj"], "task_type": "CAUSAL_LM"}),
    "language model, embeddings too": (llama, {"target_modules": ["embed_tokens", "q_proj"], "task_type": "CAUSAL_LM"}),
    "text classifier": (bert, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "image classifier": (vit, {"target_modules": "all-linear", **IMAGE_HEAD}),
}
RENAMED = ["image classifier"]
"""Their layers have other names in transformers 4."""
CASES = [(method, kind) for method in METHODS for kind in KINDS if not (method == "pissa" and "embeddings" in kind)]
MORE = {
    "Conv1D": ("allora", gpt2, {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}),
    "ranks": ("rslora", llama, {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}}),
    "orthogonal": ("allora", llama, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
}


def inputs(base) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)} if base is vit else {"input_ids": tokens()}


def write_case(directory: Path, method: str, base, settings: dict) -> Path:
    """A base, its adapter, an input and the adapted model's logits."""
    directory.mkdir(parents=True)
    base().save_pretrained(directory / "base")
    model, _ = saved(directory, method, base, **settings)
    given = inputs(base)
    with torch.no_grad():
        save_file(given | {"logits": model(**given).logits.contiguous()}, directory / "input.safetensors")
    return directory


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """An adapter of every method and kind of task."""
    root = tmp_path_factory.mktemp("readers")
    made = {(m, k): write_case(root / f"{m} {k}".replace(" ", "-"), m, KINDS[k][0], KINDS[k][1]) for m, k in CASES}
    return made | {("more", name): write_case(root / f"more-{name}", *case) for name, case in MORE.items()}


@pytest.fixture(scope="module")
def old(cases) -> dict[tuple[str, str], dict]:
    """What PEFT 0.15 found in every adapter."""
    root = next(iter(cases.values())).parent
    environment = os.environ | {"PYTHONPATH": str(TOOLS / "old_peft"), "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("old_peft.py")
    subprocess.run([sys.executable, str(script), str(root)], check=True, env=environment, timeout=600, capture_output=True)
    return {case: json.loads((path / "found.json").read_text()) for case, path in cases.items()}


def config_of(path: Path) -> dict:
    return json.loads((path / "adapter" / "adapter_config.json").read_text())


def test_todays_peft_loads_it_as_stock_lora_with_the_same_logits(cases) -> None:
    bases = {"Conv1D": gpt2} | {kind: base for kind, (base, _) in KINDS.items()}
    for (method, kind), path in cases.items():
        if not METHODS.get(method, METHODS["lora"]).mergeable:
            continue  # PEFT alone refuses it: tests/adapters/test_sidecar.py
        given = load_file(path / "input.safetensors")
        expected = given.pop("logits")
        model = load_stock(bases.get(kind, llama)(), path / "adapter")
        with torch.no_grad():
            torch.testing.assert_close(model(**given).logits, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["allora", "lora-x-eta"])
def test_the_snippets_of_the_docs_load_it(cases, tmp_path, method: str) -> None:
    """`AutoPeftModelForCausalLM` finds the base by its name, and transformers' own `load_adapter` reads PEFT's files alone."""
    path = cases[method, "language model"]
    named = json.loads((path / "adapter" / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(path / "base")}
    shutil.copytree(path / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(named))
    given = load_file(path / "input.safetensors")
    expected = given.pop("logits")
    plain = AutoModelForCausalLM.from_pretrained(path / "base").eval()
    plain.load_adapter(str(tmp_path / "adapter"))
    for model in (AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval(), plain):
        with torch.no_grad():
            torch.testing.assert_close(model(**given).logits, expected, rtol=1e-4, atol=2e-5)


def test_every_tensor_has_the_prefix_of_peft_once(cases) -> None:
    """Programs strip `base_model.model.` once; a second one, or torch.compile's `_orig_mod.`, makes the adapter a stranger."""
    for path in cases.values():
        for name in load_file(path / "adapter" / "adapter_model.safetensors"):
            assert name.startswith("base_model.model.")
            assert name.count("base_model.") == 1
            assert "base_layer" not in name
            assert "_orig_mod" not in name


@needs_tools
def test_peft_0_15_loads_what_it_should_and_gives_the_same_logits(cases, old) -> None:
    for case, path in cases.items():
        found, config = old[case], config_of(path)
        assert found["peft"] == "0.15.2"
        if reasons(config)[PEFT]:
            assert "refused" in found, case
            continue
        if case[1] in RENAMED:
            assert "not found in the base model" in found["refused"], case
            continue
        assert "refused" not in found, (case, found)
        assert found["off"] < 2e-5, (case, found["off"])
        assert not [text for text in found["warnings"] if "nexpected keyword" in text or "issing" in text], case
        now = LoraConfig.from_pretrained(str(path / "adapter")).to_dict()
        now = {key: sorted(value) if isinstance(value, set) else value for key, value in now.items()}
        same = found["settings"].keys() & now.keys()
        assert len(same) > 25
        assert {key: found["settings"][key] for key in same} == json.loads(json.dumps({key: now[key] for key in same})), case


@needs_tools
def test_vllm_loads_what_it_should_and_computes_the_same(cases, monkeypatch) -> None:
    """`peft_helper.py` checks the settings, `lora_model.py` the tensors; the rest is W + scaling B A."""
    for (method, kind), path in cases.items():
        why = reasons(config_of(path))[VLLM]
        names = {"q_proj", "k_proj", "v_proj", "down_proj", "embed_tokens", "query", "key", "value", "dense"}
        names |= {"c_attn", "c_proj", "c_fc", "fc1", "fc2", "o_proj"}
        if why:
            with pytest.raises(ValueError, match=r"does not|only supports|Missing required"):
                check(monkeypatch, path / "adapter", names)
            continue
        found = check(monkeypatch, path / "adapter", names)
        assert found.loras, (method, kind)
        if kind.startswith("language") or kind == "ranks":
            model = llama()
            for name, lora in found.loras.items():
                delta = lora.lora_b @ lora.lora_a * lora.scaling
                weight = model.get_submodule(name).weight.data
                weight += delta.T if "embed" in name else delta
            given = load_file(path / "input.safetensors")
            expected = given.pop("logits")
            with torch.no_grad():
                torch.testing.assert_close(model(**given).logits, expected, rtol=1e-4, atol=2e-5)


@needs_tools
def test_vllm_takes_the_rank_that_the_summary_names(tmp_path, monkeypatch) -> None:
    for r, rank_pattern in ((8, {}), (24, {}), (4, {"k_proj": 40})):
        _, adapter = saved(tmp_path / str(r), r=r, rank_pattern=rank_pattern)
        named = int(re.search(r"--max-lora-rank (\d+)", inspect_adapter(adapter).loads)[1])
        names = {"q_proj", "k_proj", "down_proj"}
        assert check(monkeypatch, adapter, names, max_lora_rank=named).rank == r
        smaller = max((rank for rank in VLLM_RANKS if rank < named), default=1)
        with pytest.raises(ValueError, match="greater than max_lora_rank"):
            check(monkeypatch, adapter, names, max_lora_rank=smaller)


@needs_tools
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"trainable_token_indices": [1, 2]},
        {"init_lora_weights": "olora"},
        {"use_qalora": True, "qalora_group_size": 16},
        {"layer_replication": [[0, 2], [1, 2]]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_vllm_refuses_what_we_say_it_refuses(tmp_path, monkeypatch, settings: dict) -> None:
    config = make_config("lora", r=4, target_modules=["q_proj"]).to_dict() | settings
    assert reasons(config)[VLLM]
    _, adapter = saved(tmp_path, "lora", target_modules=["q_proj"], **{k: v for k, v in settings.items() if "qalora" not in k})
    written = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(written | settings))
    with pytest.raises(ValueError, match=r"not support|not yet support|only supports|unsupported LoRA weight"):
        check(monkeypatch, adapter, {"q_proj"})


def test_a_rank_above_vllms_largest_is_named() -> None:
    assert reasons({"peft_type": "LORA", "r": 513})[VLLM] == ["a rank above 512"]
    assert "not in vLLM: a rank above 512" in summary({"peft_type": "LORA", "r": 513})


def test_the_summary_names_the_first_version_of_peft_that_has_all_settings(cases) -> None:
    assert "PEFT 0.15 and newer" in summary(config_of(cases["allora", "language model"]))
    assert "PEFT 0.16 and newer" in summary(config_of(cases["more", "orthogonal"]))
    assert summary(config_of(cases["asf-lora", "language model"])).startswith("loads in: alloralib alone; not in PEFT")


def test_llama_cpp_is_checked_before_the_conversion(cases) -> None:
    for path in cases.values():
        config = config_of(path)
        if reasons(config)[LLAMA_CPP]:
            with pytest.raises(MergeError):
                check_storable(path / "adapter", str(path / "base"))
        elif path.name != "more-Conv1D":
            assert check_storable(path / "adapter", str(path / "base")) == ("llama", True)


def test_every_setting_of_peft_is_known_to_the_table() -> None:
    """A field that a later PEFT adds is either in 0.15, or has a version here."""
    from alloralib.export.readers import _NEWER_PEFT

    old_fields = (TOOLS / "old_peft" / "peft" / "tuners" / "lora" / "config.py").read_text() if TOOLS.is_dir() else None
    if old_fields is None:
        pytest.skip("needs other programs' files: run `make tools` first")
    known = set(re.findall(r"^    (\w+): ", old_fields, re.MULTILINE)) | set(vars(AlloraConfig()))
    fields = set(LoraConfig().to_dict()) - {"peft_version", "qalora_group_size"}
    base = {"auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode"}
    old_only = set(re.findall(r"^    (\w+): ", old_fields, re.MULTILINE))
    assert known >= old_only
    assert fields - old_only - base == set(_NEWER_PEFT)


RENAMED_CELL = "no: ViT's layers have other names"


def cell(why: list[str]) -> str:
    return f"no: {why[0]}" if why else "yes"


def table(cases) -> str:
    """The table of docs/tools.md, from `reasons`, which the tests above hold against the programs."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for method, kind in CASES:
        found = reasons(config_of(cases[method, kind]))
        now = "yes" if METHODS[method].mergeable else "no"
        old = RENAMED_CELL if kind in RENAMED and now == "yes" else cell(found[PEFT])
        servers = ("-", "-") if "image" in kind else (cell(found[VLLM]), cell(found[LLAMA_CPP]))
        rows.setdefault((kind, now, old, *servers, now), []).append(method)
    head = ["method", "of a", "PEFT 0.21, transformers 5", "PEFT 0.15, transformers 4.57", "vLLM 0.33", "llama.cpp", "merged"]
    lines = [head, ["---"] * len(head), *([", ".join(methods), *row] for row, methods in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_docs_show_this_table(cases) -> None:
    shown = re.search(r"<!-- table -->\n(.*)\n<!-- /table -->", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1] == table(cases)
