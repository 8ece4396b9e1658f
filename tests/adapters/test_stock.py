"""`adapter_config.json`: short, complete, and equal for equal adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from alloralib import METHODS, make_config
from alloralib.adapters.stock import REQUIRED, StockConfig

from .models import bert, gpt2, llama

NAMES = st.sampled_from(["q_proj", "k_proj", "v_proj", "lm_head", "embed_tokens"])
LISTS = st.lists(NAMES, min_size=1, unique=True)
SETTINGS = st.fixed_dictionaries(
    {"r": st.integers(1, 64), "target_modules": LISTS | st.sampled_from(["all-linear", r".*\.(q|k)_proj"])},
    optional={
        "task_type": st.sampled_from(["SEQ_CLS", "CAUSAL_LM", "TOKEN_CLS"]),
        "base_model_name_or_path": st.text(min_size=1),
        "revision": st.text(),
        "inference_mode": st.booleans(),
        "exclude_modules": LISTS | st.just("lm_head"),
        "modules_to_save": LISTS,
        "rank_pattern": st.dictionaries(NAMES, st.integers(1, 64)),
        "bias": st.sampled_from(["none", "all", "lora_only"]),
        "fan_in_fan_out": st.booleans(),
        "init_lora_weights": st.sampled_from([True, False, "gaussian", "orthogonal"]),
        "trainable_token_indices": st.none() | st.lists(st.integers(0, 9)) | st.just({"embed_tokens": [1]}),
        "target_parameters": st.none() | st.just(["experts.gate_up_proj"]),
        "layer_replication": st.none() | st.just([[0, 2], [1, 2]]),
        "ensure_weight_tying": st.booleans(),
    },
)


def plain(value):
    return sorted(value) if isinstance(value, set) else value


@settings(max_examples=150, deadline=None)
@given(method=st.sampled_from([m for m in METHODS if METHODS[m].mergeable]), given=SETTINGS)
def test_peft_loads_an_equal_configuration(method: str, given: dict) -> None:
    if method == "pissa":
        given.pop("init_lora_weights", None)
    config = make_config(method, **given)
    with TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        again = LoraConfig.from_pretrained(directory)
        written = json.loads(Path(directory, "adapter_config.json").read_text())
    whole = LoraConfig.to_dict(config)
    assert {k: plain(v) for k, v in LoraConfig.to_dict(again).items()} == {k: plain(whole[k]) for k in LoraConfig().to_dict()}
    default = LoraConfig().to_dict()
    assert written.keys() >= REQUIRED
    assert all(written[key] != default[key] for key in written.keys() - REQUIRED)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", [llama, bert, gpt2])
def test_what_peft_itself_writes_is_short(tmp_path, method: str, base) -> None:
    """`model.save_pretrained` is PEFT's; the resolved target modules are names, sorted."""
    task = "SEQ_CLS" if base is bert else "CAUSAL_LM"
    model = get_peft_model(base(), make_config(method, r=2, target_modules="all-linear", task_type=task))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    more = {"dora": {"use_dora"}, "rslora": {"use_rslora"}, "pissa": {"init_lora_weights"}}
    more = more.get(method, set()) | ({"task_type", "modules_to_save"} if base is bert else {"task_type"})
    more |= ({"fan_in_fan_out"} if base is gpt2 else set()) | ({"lora_dropout"} if METHODS[method].dropout else set())
    less = {"lora_alpha"} if method == "asf-lora" else set()  # so that no program takes it for LoRA
    assert written.keys() - {"inference_mode", "base_model_name_or_path"} == (REQUIRED | more) - less
    assert written["target_modules"] == sorted(written["target_modules"])
    assert len(written["target_modules"]) > 1


@pytest.mark.parametrize("method", ["lora", "allora"])
def test_all_linear_is_written_as_the_last_names_of_the_layers(method: str) -> None:
    """Servers compare the last part of a layer's name with `target_modules`; "all-linear" and whole names they may not know.
    PEFT shortens the names of a model with 20 linear layers or more."""
    model = get_peft_model(llama(layers=4), make_config(method, r=2, target_modules="all-linear"))
    written = model.peft_config["default"].to_dict()["target_modules"]
    assert written == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize("method", ["lora", "allora"])
def test_equal_adapters_are_equal_files(tmp_path, method: str) -> None:
    """PEFT keeps target modules in a set, whose order changes from process to process."""
    code = (
        "import sys; from alloralib import make_config\n"
        f"make_config({method!r}, target_modules=[*'abcdefgh'], exclude_modules=[*'ijkl']).save_pretrained(sys.argv[1])"
    )
    contents = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, env=environment, timeout=300)
        contents.append((tmp_path / seed / "adapter_config.json").read_bytes())
    assert contents[0] == contents[1]


def test_the_short_configuration_is_a_loraconfig_for_everyone() -> None:
    config = make_config("lora", r=4)
    assert type(config) is StockConfig
    assert {k: v for k, v in vars(config).items() if k != "runtime_config"} == {
        k: v for k, v in vars(LoraConfig(r=4, lora_alpha=4, lora_dropout=0.05)).items() if k != "runtime_config"
    }
