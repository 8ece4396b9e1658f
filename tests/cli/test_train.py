"""`allora train` from end to end on a tiny model, and every mistake that it explains."""

import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import AutoPeftModelForSequenceClassification

from alloralib.cli.main import main
from alloralib.records import RunRecord

from .commands import contents, refused

FILES = {"adapter_config.json", "adapter_model.safetensors", "allora_config.json", "record.json", "loss.png", "README.md"}


@pytest.fixture
def base(tiny_llama, reviews, tmp_path) -> list[str]:
    """A command that trains for four steps."""
    return [
        "train", "--task", "classification", "--model", tiny_llama, "--data", str(reviews), "--output-dir",
        str(tmp_path / "run"), "--r", "4", "--max-steps", "4", "--batch-size", "8", "--test-share", "0.3",
    ]  # fmt: skip


_finished: list[Path] = []


@pytest.fixture
def finished(base, tmp_path_factory, tmp_path) -> Path:
    """The run of `base`, finished, in its output directory. It is trained once, and copied for each test."""
    if not _finished:
        assert main(base) == 0
        _finished.append(shutil.copytree(tmp_path / "run", tmp_path_factory.mktemp("finished") / "run"))
    else:
        shutil.copytree(_finished[0], tmp_path / "run")
    return tmp_path / "run"


def with_(base: list[str], **flags) -> list[str]:
    """`base` with flags replaced, added, or (None) taken away."""
    words = list(base)
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
        if value is not None:
            words += [flag] if value is True else [flag, str(value)]
    return words


def test_classification(trained, capsys) -> None:
    run = trained("classification")
    assert contents(run) >= FILES
    record = RunRecord.read(run / "record.json")
    assert record.metrics["after"]["accuracy"] > max(
        record.metrics["before"]["accuracy"], record.baselines["majority"]["accuracy"]
    )
    assert [entry["step"] for entry in record.history] == list(range(1, 31))
    assert all(math.isfinite(entry["loss"]) and entry["tokens"] > 0 for entry in record.history)
    assert record.data["labels"] == ["neg", "pos"]
    assert record.data["train"]["rows"] + record.data["test"]["rows"] + sum(record.data["removed"].values()) == 60
    assert not [name for name in contents(run.parent) if name.startswith(".run")]
    model = AutoPeftModelForSequenceClassification.from_pretrained(run, num_labels=2)
    assert model.num_labels == 2


@pytest.mark.parametrize("name", ["plain text", "causal-lm"])
def test_causal_lm(trained, name: str) -> None:
    record = RunRecord.read(trained(name) / "record.json")
    metrics = record.metrics
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 0.05
    assert metrics["after"]["perplexity"] == pytest.approx(math.exp(metrics["after"]["loss"]))
    if name == "causal-lm":  # the answer and the end-of-text token count, the prompt does not
        assert metrics["after"]["tokens"] == 2 * record.data["test"]["rows"]


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "adamw_torch_fused"])
@pytest.mark.parametrize("rule", [{"apply_to": "update"}, {"apply_to": "relative", "eta": 0}])
def test_the_rule_on_the_step_under_other_optimizers(base, tmp_path, optimizer: str, rule: dict) -> None:
    assert main(with_(base, optimizer=optimizer, **rule)) == 0
    assert json.loads((tmp_path / "run" / "allora_config.json").read_text()).items() >= rule.items()
    if "eta" in rule:  # without the taper no row is slowed
        record = RunRecord.read(tmp_path / "run" / "record.json")
        assert record.adapter["eta"] == 0
        assert {layer[-1] for entry in record.rule for layer in entry["layers"].values()} == {1.0}


def weights(tmp_path) -> bytes:
    return (tmp_path / "run" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"method": "allora-d", "target_modules": "q_proj,v_proj"},
        {"task": "causal-lm", "gradient_checkpointing": True},
        {"task": "causal-lm", "method": "allora-d"},
    ],
    ids=str,
)
def test_the_recorded_command_gives_the_same_run_bit_by_bit(base, tmp_path, capsys, request, flags: dict) -> None:
    if not flags:
        request.getfixturevalue("finished")
    else:
        assert main(with_(base, **flags)) == 0
    first = weights(tmp_path), (tmp_path / "run" / "adapter_config.json").read_bytes()
    command = shlex.split(RunRecord.read(tmp_path / "run" / "record.json").command)
    capsys.readouterr()
    assert main([*command[1:], "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["after"]["loss"] >= 0
    assert (weights(tmp_path), (tmp_path / "run" / "adapter_config.json").read_bytes()) == first


def test_each_seed_changes_its_own_thing(base, finished, tmp_path) -> None:
    """The order of the rows does not depend on the adapter's seed, and the held-out rows depend on neither."""

    def run(**seeds) -> tuple[bytes, list[int], dict]:
        if seeds:
            assert main([*with_(base, **seeds), "--overwrite"]) == 0
        record = RunRecord.read(tmp_path / "run" / "record.json")
        return weights(tmp_path), [entry["tokens"] for entry in record.history], record.metrics["before"]

    plain, adapter, data, evaluation = run(), run(adapter_seed=1), run(data_seed=1), run(evaluation_seed=1)
    assert adapter[0] != plain[0]
    assert adapter[1] == plain[1]  # the same batches
    assert data[1] != plain[1]
    assert data[2] == plain[2]  # the same model on the same held-out rows
    assert evaluation[1] != plain[1]


def test_print_config_is_a_config(base, tmp_path, capsys) -> None:
    assert main([*with_(base, target_modules="q_proj,v_proj"), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["target_modules"] == ["q_proj", "v_proj"]
    assert not (tmp_path / "run").exists()
    (tmp_path / "run.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--r", "2", "--print-config"]) == 0
    again = capsys.readouterr().out
    assert yaml.safe_load(again) == yaml.safe_load(printed) | {"r": 2}


def test_separate_test_data(base, tmp_path, reviews, capsys) -> None:
    lines = reviews.read_text().splitlines()
    held = tmp_path / "held.csv"
    held.write_text("\n".join(lines[:11]) + "\n")
    assert main(with_(base, test_share=None, test_data=held)) == 0
    record = RunRecord.read(tmp_path / "run" / "record.json")
    data = record.data
    assert data["test"]["rows"] == 10
    assert f"{record.metrics['after']['accuracy']:.3f}" in capsys.readouterr().out
    assert data["train"]["rows"] + sum(data["removed"].values()) == 60


MISTAKES = {
    "unknown flag": ({"lerning_rate": 1}, r"did you mean '--learning-rate'"),
    "target that does not exist": ({"target_modules": "q_proj,v_porj"}, r"'v_porj' does not exist.*\n.*'v_proj'"),
    "target expression": ({"target_modules": "(q"}, "is not a valid regular expression"),
    "target expression without a match": ({"target_modules": ".*qproj"}, r"matches no module[\s\S]*q_proj"),
    "rank": ({"r": 0}, "r must be a whole number"),
    "rank as text": ({"r": "many"}, "r='many'"),
    "eta zero": ({"eta": 0}, "eta must be"),
    "eta negative": ({"eta": -1.5}, "eta must be"),
    "eta nan": ({"eta": "nan"}, "eta must be"),
    "eta for a method without": ({"method": "lora", "eta": 2}, "has no eta"),
    "dropout for allora": ({"dropout": 0.1}, "has no dropout"),
    "method": ({"method": "aloora"}, "did you mean 'allora'"),
    "optimizer": ({"optimizer": "adamw_torhc"}, "did you mean 'adamw_torch'"),
    "learning rate": ({"learning_rate": 0}, "learning_rate='0': input should be greater than 0"),
    "task": ({"task": "regression"}, "task='regression'"),
    "no task": ({"task": None}, "task is not set"),
    "label column": ({"label_column": "lable"}, r"no column 'lable'[\s\S]*did you mean 'label'"),
    "text column": ({"text_column": "txt"}, r"no column 'txt'[\s\S]*did you mean 'text'"),
    "one of prompt and completion": ({"task": "causal-lm", "prompt_column": "prompt"}, "go together"),
    "label with causal-lm": (
        {"task": "causal-lm", "label_column": "label"},
        "--label-column has no meaning for task causal-lm",
    ),
    "two lengths": ({"epochs": 1}, "epochs and max_steps"),
    "two evaluations": ({"test_data": "x.csv"}, "test_data and test_share"),
    "data": ({"data": "rewiews.csv"}, "no such file"),
    "data on no hub": ({"data": "nobody/nothing"}, "cannot be loaded from the hub"),
    "model on no hub": ({"model": "nobody/nothing"}, "cannot be loaded"),
    "bundled model misspelt": ({"model": "./smollm2-135"}, "not a model directory"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(base, tmp_path, capsys, name: str) -> None:
    flags, match = MISTAKES[name]
    refused(with_(base, **flags), tmp_path, capsys, match)


ROWS = {
    "empty": ("text,label\n", "no rows"),
    "one class": ("text,label\ngood film,pos\nbad film,pos\n", "one class only, 'pos'"),
    "no label": ("text,label\ngood film,pos\nbad film,\n", r"row 2 \(line 3\).*no label"),
    "no text": ("text,label\ngood film,pos\n   ,neg\n", r"row 2 \(line 3\).*no text"),
    "malformed": ("text,label\ngood film,pos\nbad film\n", r"row 2 \(line 3\).*1 fields"),
    "no tokens": ("text,label\ngood film,pos\n\u200b\u00ad,neg\nbad film,neg\nawful plot,neg\n", r"row 2 \(line 3\)"),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_rows(base, tmp_path, capsys, name: str, monkeypatch) -> None:
    content, match = ROWS[name]
    data = tmp_path / "bad.csv"
    data.write_text(content)
    if name == "no tokens":  # a word-level tokenizer makes a token of any text; this one drops invisible characters
        monkeypatch.setattr("alloralib.training.models.load_tokenizer", dropping(base))
    refused(with_(base, data=data), tmp_path, capsys, match)


def dropping(base):
    from tokenizers import normalizers

    from alloralib.training.models import load_tokenizer

    tokenizer = load_tokenizer(base[base.index("--model") + 1])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b\u00ad", "")
    return lambda path: tokenizer


def test_unknown_label_in_the_test_data(base, tmp_path, capsys) -> None:
    held = tmp_path / "held.csv"
    held.write_text("text,label\ngood film,pos\nbad film,mixed\n")
    words = with_(base, test_share=None, test_data=held)
    refused(words, tmp_path, capsys, r"row 2 \(line 3\).*'mixed' is none of the 2 classes trained on")


def test_a_directory_that_holds_no_model(base, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    refused(with_(base, model=tmp_path / "empty"), tmp_path, capsys, "no config.json")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refused(with_(base, model=tmp_path / "empty"), tmp_path, capsys, "cannot be loaded")
    (tmp_path / "empty" / "config.json").unlink()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused(with_(base, model=tmp_path / "empty"), tmp_path, capsys, "this is an adapter")


def test_a_pickled_model_is_not_loaded(base, tiny_llama, tmp_path, capsys) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file

    shutil.copytree(tiny_llama, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pickled" / "pytorch_model.bin")
    weights.unlink()
    refused(with_(base, model=tmp_path / "pickled"), tmp_path, capsys, r"a pickle \(pytorch_model.bin\)")


def test_an_output_directory_in_use(base, finished, tmp_path, capsys) -> None:
    first = (tmp_path / "run" / "record.json").read_bytes()
    refused(base, tmp_path, capsys, "holds a run already")
    assert (tmp_path / "run" / "record.json").read_bytes() == first
    assert main([*with_(base, max_steps=2), "--overwrite"]) == 0
    assert len(RunRecord.read(tmp_path / "run" / "record.json").history) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    refused([*with_(base, output_dir=tmp_path / "mine"), "--overwrite"], tmp_path, capsys, "files that are not a run")
    refused(with_(base, output_dir=tmp_path / "mine" / "thesis.tex"), tmp_path, capsys, "a file, not a directory")


def test_a_failure_while_training_leaves_the_old_run(base, finished, tmp_path, monkeypatch) -> None:
    first = contents(tmp_path), weights(tmp_path)

    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer.training_step", broken)
    assert main([*base, "--overwrite"]) == 130
    assert (contents(tmp_path), weights(tmp_path)) == first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_is_the_exit_code(base, tmp_path, monkeypatch, number: int) -> None:
    before = contents(tmp_path)
    monkeypatch.setattr("alloralib.training.run.prepare", lambda *args, **settings: signal.raise_signal(number))
    assert main(base) == 128 + number
    assert contents(tmp_path) == before


CONFIGS = {
    "unknown key": ("modle: x\n", r"unknown setting 'modle'[\s\S]*did you mean 'model'"),
    "not YAML": ("a: [1\n", "not YAML"),
    "not a mapping": ("- 1\n", "not a mapping"),
    "number as key": ("1: 2\n", "keys must be names|unknown setting"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_config_files(base, tmp_path, capsys, name: str) -> None:
    content, match = CONFIGS[name]
    (tmp_path / "run.yaml").write_text(content)
    message = refused([*base, "--config", str(tmp_path / "run.yaml")], tmp_path, capsys, match)
    assert "run.yaml" in message
    refused([*base, "--config", str(tmp_path / "absent.yaml")], tmp_path, capsys, "cannot be read")


def test_the_command_itself(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alloralib.cli", "trian"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "did you mean 'train'" in done.stderr
    assert "Traceback" not in done.stderr
    help_text = subprocess.run([sys.executable, "-m", "alloralib.cli", "--help"], capture_output=True, text=True, timeout=60)
    assert help_text.returncode == 0
    assert "train" in help_text.stdout
