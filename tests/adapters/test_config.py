"""`AlloraConfig`: which settings it accepts and refuses; and the methods by name."""

import dataclasses
import math

import pytest
from peft import LoraConfig

from alloralib import METHODS, AlloraConfig, VariantConfig, make_config
from alloralib.errors import ConfigError


def test_defaults() -> None:
    config = AlloraConfig()
    assert (config.r, config.eta, config.apply_to) == (16, 2.0, "gradient")
    assert isinstance(config, LoraConfig)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lora_alpha": 32},
        {"lora_dropout": 0.05},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True},
        {"alpha_pattern": {"q_proj": 3}},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "mica"},
        {"alora_invocation_tokens": [1]},
        {"velora_config": {"num_groups": 4}},
        {"use_qalora": True},
    ],
    ids=str,
)
def test_what_allora_does_not_have_cannot_be_set(wrong: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        AlloraConfig(**wrong)
    assert next(iter(wrong)) in str(caught.value)
    assert "remedy" in str(caught.value)


def test_every_lora_variant_of_this_peft_is_refused() -> None:
    """Including those of later PEFT versions: a field marked as a variant must not be settable."""
    variants = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")]
    assert len(variants) >= 5
    for name in variants:
        config = AlloraConfig()
        object.__setattr__(config, name, object())
        with pytest.raises(ConfigError, match=name):
            config._refuse_unsupported()


@pytest.mark.parametrize("r", [0, -1, 1.5, True, "8", None])
def test_rank_must_be_a_positive_whole_number(r) -> None:
    with pytest.raises(ConfigError, match="r must be a whole number"):
        AlloraConfig(r=r)
    with pytest.raises(ConfigError, match="rank_pattern"):
        AlloraConfig(rank_pattern={"q_proj": r})


@pytest.mark.parametrize("eta", [0, -1.0, math.nan, math.inf, 1e7, "2", None, True])
def test_eta_must_be_positive_and_finite(eta) -> None:
    with pytest.raises(ConfigError, match="eta must be"):
        AlloraConfig(eta=eta)


def test_apply_to() -> None:
    with pytest.raises(ConfigError, match="apply_to"):
        AlloraConfig(apply_to="weights")


def test_alpha_is_r_for_every_rank_even_after_assignment() -> None:
    config = AlloraConfig(r=8, rank_pattern={"q_proj": 4})
    assert (config.lora_alpha, config.alpha_pattern) == (8, {"q_proj": 4})
    config.r = 6
    config.rank_pattern["v_proj"] = 2
    stock = config.to_dict()
    assert (stock["lora_alpha"], stock["alpha_pattern"]) == (6, {"q_proj": 4, "v_proj": 2})


def test_stock_keys_only_on_disk() -> None:
    assert AlloraConfig(target_modules=["q", "v"]).to_dict().keys() <= LoraConfig(target_modules=["q"]).to_dict().keys()


def test_dataclasses_replace_works() -> None:
    config = dataclasses.replace(AlloraConfig(r=8, eta=1.5, target_modules=["q"]), r=4, lora_alpha=4)
    assert (config.r, config.eta, config.lora_alpha) == (4, 1.5, 4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_name(method: str) -> None:
    config = make_config(method, r=4, target_modules=["q"], rank_pattern={"q": 2})
    dropout = 0.05 if "dropout" in METHODS[method].settings else 0.0
    assert config.lora_dropout == dropout
    assert config.use_dora is (method == "dora")
    assert config.use_rslora is (method == "rslora")
    factor = 2 if method == "lora-x-eta" else 1
    assert config.lora_alpha == 4 * factor
    assert config.alpha_pattern == {"q": 2 * factor}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setting", ["eta", "dropout", "apply_to"])
def test_a_setting_exists_only_for_methods_that_have_it(method: str, setting: str) -> None:
    value = {"eta": 1.5, "dropout": 0.2, "apply_to": "update"}[setting]
    if setting in METHODS[method].settings:
        config = make_config(method, **{setting: value})
        if setting == "dropout":
            assert config.lora_dropout == value
        elif method == "lora-x-eta":
            assert config.lora_alpha == 1.5 * 16
        else:
            assert getattr(config, setting) == value
    else:
        with pytest.raises(ConfigError, match=f"has no {setting}"):
            make_config(method, **{setting: value})


def test_misspelled_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'allora-od'"):
        make_config("alora-od")


def test_variant_config_refuses_settings_its_method_does_not_have() -> None:
    with pytest.raises(ConfigError, match="lora_dropout"):
        VariantConfig(method="asf-lora", lora_dropout=0.1)
    with pytest.raises(ConfigError, match="apply_to"):
        VariantConfig(method="allora-od", apply_to="update")
    with pytest.raises(ConfigError, match="method"):
        VariantConfig(method="lora")
    with pytest.raises(ConfigError, match="dropout must be"):
        VariantConfig(method="allora-d", lora_dropout=1.0)
