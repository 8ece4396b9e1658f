"""An adapter is used with the base model that it was trained on, which is known by its content, not by its path."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from alloralib import load_config, open_run
from alloralib.cli.main import main
from alloralib.errors import ConfigError, ModelError
from alloralib.records import RunRecord
from alloralib.training import base_identity, opened
from alloralib.training.base_identity import (
    BaseIdentity,
    check_base,
    difference,
    digest_of_weights,
    identify,
    stored_dtype,
    stored_dtypes,
)

from ..cli.commands import refused
from ..trained import command, jsonl, sentences


@pytest.fixture
def base(tiny_llama, tmp_path) -> Path:
    """A copy of the tiny Llama, which a test may change."""
    shutil.copytree(tiny_llama, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def run(trained, base, tmp_path) -> Path:
    """A finished language model's run whose base is the copy."""
    shutil.copytree(trained("causal-lm"), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    record["config"]["model"] = str(base)
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    return tmp_path / "run"


def change_weights(base: Path) -> None:
    """One value of one tensor by one unit in the last place; name, shape, dtype and size of the file stay."""
    tensors = load_file(base / "model.safetensors")
    weight = tensors["model.layers.1.mlp.down_proj.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def change_config(base: Path, **fields) -> None:
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(content | fields))


def changed(base: Path, tiny_llama: str) -> str | None:
    return difference(identify("now", str(base)), identify("then", tiny_llama))


# the identity


def test_the_same_tensors_in_other_files_and_another_order_are_the_same_base(base, tiny_llama, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert changed(tmp_path / "sharded", tiny_llama) is None
    tensors = load_file(base / "model.safetensors")
    save_file(dict(reversed(tensors.items())), base / "model.safetensors", metadata={"format": "pt", "by": "another tool"})
    assert changed(base, tiny_llama) is None


@pytest.mark.parametrize("change", ["a value", "a dtype", "a name", "a shape", "two values swapped"])
def test_other_tensors_are_another_base(base, tiny_llama, change: str) -> None:
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    if change == "a value":
        tensors[name][0, 0] += 1
    elif change == "a dtype":
        tensors[name] = tensors[name].double()
    elif change == "a name":
        tensors[name.replace("q_proj", "qq_proj")] = tensors.pop(name)
    elif change == "a shape":
        tensors[name] = tensors[name].reshape(-1)
    else:
        other = name.replace("layers.0", "layers.1")
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert "its weights have the sha256" in changed(base, tiny_llama)


def test_fields_of_the_configuration_that_change_the_logits_count(base, tiny_llama) -> None:
    change_config(
        base, use_cache=False, transformers_version="4.40.0", architectures=["Other"], dtype="float16", id2label={"0": "a"}
    )
    assert changed(base, tiny_llama) is None
    change_config(base, rms_norm_eps=0.5)
    assert changed(base, tiny_llama) == "in its config.json rms_norm_eps is 0.5 and was 1e-06"
    change_config(base, rms_norm_eps=1e-6, rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})
    assert changed(base, tiny_llama) == "in its config.json rope_parameters.rope_theta is 500000.0 and was 10000.0"


def test_a_default_of_another_version_of_transformers_is_no_difference(base) -> None:
    now = identify("m", str(base))
    saved_by_it = {**now.config, "gone": 1, "rope_parameters": {"rope_theta": 10000.0}}
    del saved_by_it["mlp_bias"]
    assert difference(now, replace(now, config=saved_by_it, config_file="")) is None
    assert difference(now, replace(now, config={**now.config, "mlp_bias": True})) is None, "config.json is the same"
    assert difference(now, replace(now, config={**now.config, "mlp_bias": True}, config_file="")) is not None


def test_stored_dtypes(base, tmp_path) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "16", max_shard_size="10KB")
    tensors = load_file(base / "model.safetensors")
    assert stored_dtype(str(base)) == torch.float32
    assert stored_dtypes(str(tmp_path / "16")) == dict.fromkeys(tensors, torch.bfloat16)
    assert (stored_dtype("no/such-model"), stored_dtypes("no/such-model")) == (None, {})


# what a run keeps


def test_the_record_and_the_sidecar_hold_it(trained, tiny_llama) -> None:
    record = RunRecord.read(trained("classification") / "record.json")
    expected = identify(record.config["model"], tiny_llama)  # another process may have trained it, on a copy of its own
    sidecar = json.loads((trained("classification") / "allora_config.json").read_text())
    for entry in (record.model, sidecar["base"]):
        assert BaseIdentity.of(entry, "") == expected
    assert len(expected.weights) == 64
    assert sidecar["method"] == "allora"


def test_an_adapter_of_a_stock_method_has_a_sidecar_without_a_rule(tiny_llama, base, tmp_path, capsys) -> None:
    data = jsonl(tmp_path / "rows.jsonl", [{"text": text} for text, _ in sentences(30)])
    flags = {"task": "causal-lm", "text_column": "text", "data": data, "method": "dora", "max_steps": 3, "model": base}
    assert main(command(tmp_path, **flags)) == 0
    assert main(["export", str(tmp_path / "run"), "--format", "peft", "--output", str(tmp_path / "clean")]) == 0
    assert not (tmp_path / "clean" / "record.json").exists()
    assert type(load_config(tmp_path / "clean")) is LoraConfig
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "clean", is_trainable=True)
    assert main(["inspect", str(tmp_path / "clean")]) == 0
    assert "dora" in capsys.readouterr().out
    change_weights(base)
    refused(["generate", str(tmp_path / "clean"), "--prompt", "film"], tmp_path, capsys, "not the base model that .*clean")


# the check


VERBS = {
    "merge": ["merge", "RUN", "--output-dir", "OUT"],
    "export peft": ["export", "RUN", "--format", "peft", "--output", "OUT"],
    "evaluate": ["evaluate", "RUN"],
    "generate": ["generate", "RUN", "--prompt", "film"],
}


def words(verb: str, run: Path, out: Path) -> list[str]:
    return [{"RUN": str(run), "OUT": str(out)}.get(word, word) for word in VERBS[verb]]


@pytest.mark.parametrize("verb", VERBS)
def test_changed_weights_are_refused(run, base, tmp_path, capsys, verb: str) -> None:
    change_weights(base)
    message = refused(words(verb, run, tmp_path / "out"), tmp_path, capsys, "not the base model that .* was trained on")
    now, then = digest_of_weights(base), RunRecord.read(run / "record.json").model["weights"]
    assert f"its weights have the sha256 {now[:12]}... and had {then[:12]}..." in message
    assert "--model DIR" in message
    assert "--allow-other-base" in message
    assert main([*words(verb, run, tmp_path / "out"), "--allow-other-base"]) == 0
    assert capsys.readouterr().err.count("warning: " + str(base) + ": not the base model") == 1


def test_another_model_is_refused_and_a_moved_one_is_not(run, base, tmp_path, capsys) -> None:
    base.rename(tmp_path / "moved")
    assert main([*words("merge", run, tmp_path / "merged"), "--model", str(tmp_path / "moved")]) == 0
    assert "warning" not in capsys.readouterr().err
    again = [*words("merge", run, tmp_path / "twice"), "--model", str(tmp_path / "merged")]
    refused(again, tmp_path, capsys, "not the base model")


def test_another_configuration_is_refused(run, base, tmp_path, capsys) -> None:
    change_config(base, rms_norm_eps=0.5)
    refused(words("evaluate", run, tmp_path), tmp_path, capsys, "rms_norm_eps is 0.5 and was 1e-06")


def test_from_python(trained, base) -> None:
    change_weights(base)
    opened = open_run(trained("classification"), model=str(base))
    for use in (lambda: opened.model, lambda: opened.predict(["film good"]), opened.base):
        with pytest.raises(ModelError, match="not the base model"):
            use()
    assert len(open_run(trained("classification"), model=str(base), allow_other_base=True).predict(["film good"])) == 1


@pytest.mark.parametrize("written", ["an old record", "no record"])
def test_an_adapter_that_does_not_name_its_weights_is_used_with_a_warning(run, base, tmp_path, capsys, written: str) -> None:
    record = json.loads((run / "record.json").read_text())
    record["model"] = {"name": "m", "parameters": 1, "class": "LlamaForCausalLM"}
    (run / "record.json").write_text(json.dumps(record))
    if written == "no record":
        (run / "record.json").unlink()
        (run / "allora_config.json").unlink()
    change_weights(base)
    assert main([*words("generate", run, tmp_path), "--model", str(base), "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().err.count("does not say which weights it was trained on") == 1


def test_a_damaged_entry_is_named(run) -> None:
    record = json.loads((run / "record.json").read_text())
    record["model"]["config"] = 3
    (run / "record.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="damaged entry of the base model"):
        open_run(run)


# the hub


COMMITS = [letter * 40 for letter in "abc"]


@pytest.fixture
def hub(base, tmp_path, monkeypatch) -> Path:
    """A cache of the hub with three commits of some/llama: two with the same weights, and one with others."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--llama"
    for commit in COMMITS:
        shutil.copytree(base, repository / "snapshots" / commit)
    change_weights(repository / "snapshots" / COMMITS[2])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    return repository


def test_a_model_of_the_hub_has_its_commit(hub, base, monkeypatch) -> None:
    AutoConfig.from_pretrained("some/llama")
    then = identify("some/llama", "some/llama")
    assert (then.name, then.revision) == ("some/llama", COMMITS[0])
    assert difference(identify("x", str(base)), then) is None, "the same model, downloaded into a directory"
    assert stored_dtype("some/llama") == torch.float32
    monkeypatch.setattr(base_identity, "digest_of_weights", lambda directory: pytest.fail("the commit says it"))
    check_base(then, "some/llama", "run")


def test_a_model_that_is_not_in_the_cache_yet_is_merged_in_its_own_dtype(run, base, hub, tmp_path, monkeypatch) -> None:
    """Its weights arrive when it is loaded."""
    snapshot, later = hub / "snapshots" / COMMITS[0], tmp_path / "later"
    AutoModelForCausalLM.from_pretrained(base).bfloat16().save_pretrained(snapshot)
    (snapshot / "model.safetensors").rename(later)
    load_reported = opened.load_reported

    def download(*args: object, **settings: object):
        if later.exists():
            later.rename(snapshot / "model.safetensors")
        return load_reported(*args, **settings)

    monkeypatch.setattr(opened, "load_reported", download)
    open_run(run, model="some/llama", allow_other_base=True).export(tmp_path / "out", "merged")
    assert stored_dtype(str(tmp_path / "out")) == torch.bfloat16


def test_another_commit_counts_by_its_content(hub, capsys) -> None:
    then = identify("some/llama", "some/llama")
    (hub / "refs" / "main").write_text(COMMITS[1])
    check_base(then, "some/llama", "run")  # another README, say
    (hub / "refs" / "main").write_text(COMMITS[2])
    with pytest.raises(ModelError, match=f"revision {COMMITS[2]} and not {COMMITS[0]}") as error:
        check_base(then, "some/llama", "run")
    assert f"hf download some/llama --revision {COMMITS[0]} --local-dir DIR, and give --model DIR" in str(error.value)
    check_base(then, str(hub / "snapshots" / COMMITS[0]), "run")
    assert capsys.readouterr().err == ""
