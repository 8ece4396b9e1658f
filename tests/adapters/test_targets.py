"""What is adapted and what is trained whole, by names of modules."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from alloralib import AlloraConfig, make_config
from alloralib.adapters.targets import adapted_modules, check_targets, settings_of, trained_whole, whole_modules
from alloralib.errors import ConfigError
from alloralib.training.config import RunConfig

from ..classifiers import TEXT


def bert(**settings) -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**TEXT, num_labels=3, **settings))


class Odd(nn.Module):
    """A body whose modules have names that end as those of a head, and bare parameters."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"subscore": nn.Linear(2, 2), "dense": nn.Linear(2, 2), "block": Block()})
        self.head = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.score = nn.Linear(2, 2)
        self.dropout = nn.Dropout()
        self.temperature = nn.Parameter(torch.ones(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(2))
        self.dense = nn.Linear(2, 2)
        self.other = nn.Sequential(nn.Linear(2, 2))


def test_the_head_and_what_is_new() -> None:
    assert trained_whole(bert(), [], text=True) == ["classifier"]
    new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"]
    assert trained_whole(bert(), new, text=True) == ["bert.pooler.dense", "classifier"]
    llama = LlamaForSequenceClassification(LlamaConfig(**TEXT))
    assert trained_whole(llama, ["model.layers.0.mlp.up_proj.weight"], text=True) == ["model.layers.0.mlp.up_proj", "score"]


def test_names_that_end_alike_and_bare_parameters() -> None:
    """PEFT takes all modules whose name ends in one of `modules_to_save`, with no regard to dots."""
    assert set(trained_whole(Odd(), [], text=True)) == {"head", "score", "body.subscore"}
    assert set(trained_whole(Odd(), ["body.block.token"], text=True)) == {"head", "score", "body.subscore", "body.block"}
    assert "body.block.other.0" in trained_whole(Odd(), ["body.block.other.0.bias"], text=True)
    with pytest.raises(ConfigError, match=r"has no temperature[\s\S]*use a base"):
        trained_whole(Odd(), ["temperature"], text=True)


@pytest.mark.parametrize("targets", ["all-linear", ["dense", "query"], ["bert.encoder.layer.0.attention.self.query", "dense"]])
def test_what_is_trained_whole_gets_no_adapter(targets) -> None:
    model, new = bert(), ["bert.pooler.dense.weight"]
    whole = trained_whole(model, new, text=True)
    check_targets(model, targets, whole)
    config = make_config("allora", r=2, target_modules=targets, task_type="SEQ_CLS")
    for name, value in settings_of(model, targets, whole, text=True).items():
        setattr(config, name, value)
    adapted = get_peft_model(model, config)
    assert whole_modules(adapted) == whole
    assert not any("pooler" in name or "classifier" in name for name in adapted_modules(adapted))
    named = adapted.peft_config["default"].target_modules
    assert not any(name.endswith(("pooler.dense", "classifier")) for name in named)
    excluded = adapted.peft_config["default"].exclude_modules or []
    assert list(excluded) == ([] if targets == "all-linear" else ["bert.pooler.dense"])


def test_targets_that_are_all_trained_whole() -> None:
    model = bert()
    for targets in (["classifier"], ["query", "classifier"], "classifier"):
        with pytest.raises(ConfigError, match=r"names only what is trained whole: classifier[\s\S]*trained and saved anyway"):
            check_targets(model, targets, ["classifier"])
    with pytest.raises(ConfigError, match=r"no linear layer outside its head[\s\S]*--target-modules"):
        check_targets(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1)), "all-linear", ["1"])
    with pytest.raises(ConfigError, match=r"did you mean 'query'"):
        check_targets(model, ["querry"], ["classifier"])
    with pytest.raises(ConfigError, match="not a valid regular expression"):
        check_targets(model, "query[", ["classifier"])


def test_one_name_is_a_name_and_no_expression_for_the_whole_of_it() -> None:
    settings = {"task": "causal-lm", "model": "m", "data": "d.jsonl", "text_column": "text", "output_dir": "o"}
    assert RunConfig.of(settings | {"target_modules": "q_proj"}).target_modules == ["q_proj"]
    assert RunConfig.of(settings | {"target_modules": "all-linear"}).target_modules == "all-linear"
    assert RunConfig.of(settings | {"target_modules": r".*\.q_proj"}).target_modules == r".*\.q_proj"


@pytest.mark.parametrize("method", ["allora", "lora", "allora-d", "dora"])
@pytest.mark.parametrize("given", [["bert.pooler"], ["LayerNorm"], None])
def test_modules_to_save_of_a_user(method: str, given, tmp_path) -> None:
    """As `make_config` passes them on, for a classifier and without a task."""
    for task in ("SEQ_CLS", None):
        saved = None if given is None else list(given)
        config = make_config(method, r=2, target_modules=["query"], modules_to_save=saved, task_type=task)
        model = get_peft_model(bert(), config)
        found = {name.rpartition(".")[2] for name in whole_modules(model)}
        assert found == {name.rpartition(".")[2] for name in given or []} | ({"classifier"} if task else set())
        model.save_pretrained(tmp_path / str(task))
    assert isinstance(AlloraConfig(modules_to_save=["score"]).modules_to_save, list)
