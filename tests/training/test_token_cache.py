"""`train` with rows that an earlier run has tokenized: the same run, without tokenizing."""

import shutil

import pytest
from safetensors.torch import load_file

from alloralib.data import tokens
from alloralib.training.config import RunConfig
from alloralib.training.run import train

COLUMNS = {
    "causal-lm": {"prompt_column": "prompt", "completion_column": "completion"},
    "plain": {"text_column": "text"},
    "classification": {},
}


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(tokens.SWITCH, "1")
    return tmp_path / "cache" / "tokens"


def _run(tiny_llama, data, output, **settings):
    fixed = {"model": tiny_llama, "data": str(data), "output_dir": str(output), "max_steps": 2, "batch_size": 4, "r": 2}
    record = train(RunConfig.of(fixed | settings))
    return record, load_file(output / "adapter_model.safetensors")


def _same(one, other):
    assert one[0].metrics == other[0].metrics
    assert one[0].history == other[0].history
    assert one[0].preflight["data"] == other[0].preflight["data"]
    assert one[1].keys() == other[1].keys()
    assert all(one[1][name].equal(other[1][name]) for name in one[1])


@pytest.mark.parametrize("kind", ["causal-lm", "plain", "classification"])
def test_a_second_run_does_not_tokenize_and_is_the_same(tiny_llama, reviews, tmp_path, monkeypatch, kept, kind):
    settings = {"task": "causal-lm" if kind == "plain" else kind, **COLUMNS[kind], "validation_share": 0.2}
    first = _run(tiny_llama, reviews, tmp_path / "one", **settings)
    assert len(list(kept.iterdir())) == 3  # train, validation, test

    def refuse(*args, **kwargs):
        raise AssertionError("tokenized again")

    monkeypatch.setattr("alloralib.training.prepare.build_examples", refuse)
    second = _run(tiny_llama, reviews, tmp_path / "two", **settings)
    _same(first, second)
    monkeypatch.undo()
    monkeypatch.setenv(tokens.SWITCH, "0")
    _same(first, _run(tiny_llama, reviews, tmp_path / "three", **settings))


@pytest.mark.parametrize("lost", ["train", "test"])
def test_one_part_in_the_cache_and_another_not(tiny_llama, reviews, tmp_path, kept, lost):
    settings = {"task": "causal-lm", **COLUMNS["causal-lm"]}
    first = _run(tiny_llama, reviews, tmp_path / "one", **settings)
    rows = {"train": first[0].data["train"]["rows"], "test": first[0].data["test"]["rows"]}
    for place in kept.iterdir():
        if len(tokens.datasets.load_from_disk(place)) == rows[lost]:
            shutil.rmtree(place)
    assert len(list(kept.iterdir())) == 1
    _same(first, _run(tiny_llama, reviews, tmp_path / "two", **settings))
    assert len(list(kept.iterdir())) == 2


def test_other_rows_or_another_length_are_tokenized_again(tiny_llama, reviews, tmp_path, kept):
    settings = {"task": "causal-lm", **COLUMNS["causal-lm"]}
    _run(tiny_llama, reviews, tmp_path / "one", **settings)
    _run(tiny_llama, reviews, tmp_path / "two", **settings, max_length=100)
    assert len(list(kept.iterdir())) == 4
    _run(tiny_llama, reviews, tmp_path / "three", **settings, train_rows=20)
    assert len(list(kept.iterdir())) == 5  # the test rows are the same
