"""Adapters on disk: stock LoRA for other programs, ALLoRA when training continues."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from alloralib import AlloraConfig, VariantConfig, load_config, make_config
from alloralib.adapters.layers import Linear
from alloralib.adapters.sidecar import SIDECAR
from alloralib.adapters.stock import REQUIRED
from alloralib.errors import ConfigError

from .models import assert_rule, gradients, llama, lora_twin, randomise, tokens

LM = {"input_ids": tokens(), "labels": tokens()}


def saved(tmp_path, method: str = "allora", **settings):
    config = make_config(
        method, **{"r": 4, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2}} | settings
    )
    model = get_peft_model(llama(), config).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_what_is_on_disk(tmp_path) -> None:
    _, path = saved(tmp_path)
    stock = json.loads((path / "adapter_config.json").read_text())
    assert stock.keys() == REQUIRED | {"rank_pattern", "alpha_pattern", "auto_mapping", "inference_mode"}
    assert (stock["peft_type"], stock["r"], stock["lora_alpha"]) == ("LORA", 4, 4)
    assert stock["rank_pattern"] == stock["alpha_pattern"] == {"q_proj": 2}
    ours = json.loads((path / SIDECAR).read_text())
    assert {k: ours[k] for k in ("method", "eta", "apply_to")} == {"method": "allora", "eta": 2.0, "apply_to": "gradient"}
    assert not list(path.glob("*.bin"))


STOCK = """
import sys, torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
root, ids, logits = sys.argv[1], load_file(sys.argv[1] + "/ids.safetensors")["ids"], {}
for method in sys.argv[2:]:
    base = LlamaForCausalLM.from_pretrained(root + "/base")
    try:
        model = PeftModel.from_pretrained(base, f"{root}/{method}/adapter").eval()
    except Exception as error:
        print(f"{method} refused: {error}")
        continue
    assert {type(m).__module__ for m in model.modules() if hasattr(m, "lora_A")} == {"peft.tuners.lora.layer"}
    with torch.no_grad():
        logits[method] = model(input_ids=ids).logits
assert not any(name.startswith("alloralib") for name in sys.modules), "this must be PEFT alone"
save_file(logits, root + "/logits.safetensors")
"""


def test_stock_peft_without_alloralib_computes_the_same_logits_or_refuses(tmp_path) -> None:
    """ASF-LoRA is not LoRA at inference: PEFT alone must fail on it instead of loading something else."""
    from safetensors.torch import load_file, save_file

    computed = ("allora", "allora-d", "allora-od", "lora-x-eta")
    models = {method: saved(tmp_path / method, method)[0] for method in computed}
    saved(tmp_path / "asf-lora", "asf-lora", rank_pattern={})
    llama().save_pretrained(tmp_path / "base")
    save_file({"ids": tokens()}, tmp_path / "ids.safetensors")
    words = [sys.executable, "-c", STOCK, str(tmp_path), *computed, "asf-lora"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    refused = [line for line in done.stdout.splitlines() if "refused" in line]
    assert len(refused) == 1
    assert "ASF-LORA" in refused[0]
    logits = load_file(tmp_path / "logits.safetensors")
    assert logits.keys() == set(computed)
    for method, model in models.items():
        with torch.no_grad():
            ours = model(input_ids=tokens()).logits
        torch.testing.assert_close(logits[method], ours, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=tokens()).logits, logits[method], atol=1e-3)


@pytest.mark.parametrize("method", ["allora", "allora-d", "allora-od", "asf-lora"])
@pytest.mark.parametrize("trainable", [True, False])
def test_loading_restores_the_method(tmp_path, method: str, trainable: bool) -> None:
    model, path = saved(tmp_path, method, eta=1.25)
    again = PeftModel.from_pretrained(llama(), path, is_trainable=trainable).eval()
    config = again.peft_config["default"]
    assert type(config) is (AlloraConfig if method == "allora" else VariantConfig)
    assert (config.eta, config.r, config.rank_pattern) == (1.25, 4, {"q_proj": 2})
    assert getattr(config, "method", "allora") == method
    assert all(m.lora_variant["default"].rule.eta == 1.25 for m in again.modules() if isinstance(m, Linear))
    torch.testing.assert_close(again(**LM).logits, model(**LM).logits)
    if trainable:
        first, second = gradients(model, LM), gradients(again, LM)
        for name, grad in first.items():
            torch.testing.assert_close(second[name], grad)
    else:
        assert not any(p.requires_grad for p in again.parameters())


def test_training_continues_with_the_rule(tmp_path) -> None:
    _, path = saved(tmp_path, eta=1.7, rank_pattern={})
    again = PeftModel.from_pretrained(llama(), path, is_trainable=True).eval()
    twin = lora_twin(llama(), again)
    assert assert_rule(again, gradients(again, LM), gradients(twin, LM), 1.7) == 4


def test_load_adapter_onto_a_model_with_allora(tmp_path) -> None:
    _, path = saved(tmp_path, eta=1.25)
    model = get_peft_model(llama(), AlloraConfig(r=2, target_modules=["q_proj"]))
    model.load_adapter(path, "saved", is_trainable=True)
    assert type(model.peft_config["saved"]) is AlloraConfig
    assert {m.lora_variant["saved"].rule.eta for m in model.modules() if isinstance(m, Linear) and "saved" in m.lora_A} == {
        1.25
    }


def test_a_stock_adapter_stays_stock(tmp_path) -> None:
    get_peft_model(llama(), LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert type(load_config(tmp_path)) is LoraConfig
    model = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    assert not any(isinstance(m, Linear) for m in model.modules())


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("{", "not an alloralib configuration"),
        ("[]", "not an alloralib configuration"),
        ('{"format": 99}', "update alloralib"),
        ('{"format": 1}', "not an alloralib configuration"),
        ('{"format": 1, "method": "alora", "eta": 2, "apply_to": "gradient"}', "did you mean"),
        ('{"format": 1, "method": "allora", "eta": -2, "apply_to": "gradient"}', "eta must be"),
    ],
)
def test_a_damaged_sidecar_is_named(tmp_path, damage: str, match: str) -> None:
    _, path = saved(tmp_path)
    (path / SIDECAR).write_text(damage)
    with pytest.raises(ConfigError, match=match):
        PeftModel.from_pretrained(llama(), path, is_trainable=True)


def test_any_import_of_the_package_installs_the_hooks() -> None:
    code = (
        "import alloralib.adapters.targets\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as registry\n"
        "from peft.tuners.lora import LoraModel\n"
        "assert registry['LORA'].__module__ == registry['ASF-LORA'].__module__ == 'alloralib.adapters.peft_hooks'\n"
        "assert hasattr(LoraModel._create_and_replace, '__wrapped__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
