"""`allora train` in two processes: the adapter of one process at the same global batch.

With SGD, whose step is linear in the gradient: Adam divides by it and turns round-off in a small one into a step.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from alloralib.cli.main import main
from alloralib.records import RunRecord

from ..adapters.models import bert
from ..conftest import write_reviews

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(autouse=True)
def _warnings():
    with warnings.catch_warnings():
        yield


def launch(how: str, commands: list[list[str]], directory: Path) -> None:
    """Run commands one after another in two processes."""
    file = directory / f"{how}.json"
    file.write_text(json.dumps(commands))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.scale.launched", how, str(file)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        log, _ = ran.communicate(timeout=200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)
    assert ran.returncode == 0, log[-6000:]


@pytest.fixture(scope="module")
def words(tiny_llama, tmp_path_factory) -> list[str]:
    """Three global batches of 8 an epoch, the last one of a single row, which one process counts and the other repeats.

    A step has the batches of a window of four, so the last window is not whole either.
    """
    directory = tmp_path_factory.mktemp("rows")
    lines = write_reviews(directory / "reviews.csv").read_text().splitlines()
    parts = {"train": lines[1:18], "validation": lines[25:31], "test": lines[31:45]}
    for name, rows in parts.items():
        (directory / f"{name}.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    return [
        "train", "--r", "2", "--model", tiny_llama, "--data", str(directory / "train.csv"),
        "--test-data", str(directory / "test.csv"), "--validation-data", str(directory / "validation.csv"),
        "--max-steps", str(STEPS), "--optimizer", "sgd", "--learning-rate", "0.5", "--checkpoint-every", "2",
        "--gradient-accumulation", "4",
    ]  # fmt: skip


TASKS = {
    "classification": ["--task", "classification"],
    "causal-lm": ["--task", "causal-lm", "--prompt-column", "prompt", "--completion-column", "completion"],
}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1e-6)).item() for name in b)


@pytest.fixture(scope="module")
def tiny_bert(tiny_llama, tmp_path_factory) -> str:
    """A classifier whose loss does not know how many rows other processes have."""
    path = tmp_path_factory.mktemp("models") / "bert"
    bert().save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(path)
    return str(path)


CASES = {
    "ddp": [("classification", "llama"), ("classification", "bert"), ("causal-lm", "llama")],
    "fsdp2": [("causal-lm", "llama")],
}


@pytest.fixture(scope="module")
def two(words, tiny_bert, tmp_path_factory):
    """Gives the command of a case, and the directory of its run in two processes; cases of a kind share their processes."""
    root = tmp_path_factory.mktemp("two")

    def command(task: str, model: str) -> list[str]:
        other = ["--model", tiny_bert, "--target-modules", "query,value"] if model == "bert" else []
        other += ["--head-start", "logistic", "--head-learning-rate", "0.2"] if model == "bert" else []
        return [*words, *TASKS[task], *other]

    @functools.cache
    def launched(how: str) -> None:
        commands = [
            [*command(*case), "--batch-size", "4", "--output-dir", str(root / "-".join((how, *case)))] for case in CASES[how]
        ]
        launch(how, commands, root)

    def run(how: str, task: str, model: str) -> tuple[list[str], Path]:
        launched(how)
        return command(task, model), root / "-".join((how, task, model))

    return run


@pytest.mark.parametrize(("how", "task", "model"), [(how, *case) for how, cases in CASES.items() for case in cases])
def test_two_processes_train_what_one_trains(two, tmp_path, how: str, task: str, model: str) -> None:
    command, directory = two(how, task, model)
    one = tmp_path / "one"
    assert main([*command, "--batch-size", "8", "--output-dir", str(one)]) == 0
    assert furthest(weights(directory), weights(one)) < 1e-4
    first, second = (RunRecord.read(path / "record.json") for path in (one, directory))
    assert second.machine["processes"] == 2
    assert second.data["train"]["rows"] % 8 == 1
    assert [e["tokens"] for e in second.history] == [e["tokens"] for e in first.history]  # the same rows in every step
    for a, b in zip(first.history, second.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    assert second.metrics["after"]["loss"] == pytest.approx(first.metrics["after"]["loss"], rel=1e-3)
    assert second.baselines.keys() == first.baselines.keys()
    if task == "causal-lm":
        assert second.baselines["4-shot"]["loss"] == pytest.approx(first.baselines["4-shot"]["loss"], rel=1e-5)
    assert not directory.with_name(directory.name + ".unfinished").exists()
