"""`allora train` in two processes: the adapter of one process at the same global batch.

With SGD, whose step is linear in the gradient: Adam divides by it and turns round-off in a small one into a step.
"""

import contextlib
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

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(autouse=True)
def _warnings():
    with warnings.catch_warnings():
        yield


def launch(how: str, words: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.scale.launched", how, *words]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        log, _ = ran.communicate(timeout=150)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)
    assert ran.returncode == 0, log[-6000:]


@pytest.fixture
def words(tiny_llama, reviews, tmp_path) -> list[str]:
    """Nearly three global batches of 8 an epoch: the last one is not whole, and each process has its share of it."""
    lines = reviews.read_text().splitlines()
    parts = {"train": lines[1:25], "validation": lines[25:31], "test": lines[31:45]}
    for name, rows in parts.items():
        (tmp_path / f"{name}.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    (tmp_path / "run.yaml").write_text("r: 2\n")  # torchrun takes --r for one of its own flags
    return [
        "train", "--config", str(tmp_path / "run.yaml"), "--model", tiny_llama, "--data", str(tmp_path / "train.csv"),
        "--test-data", str(tmp_path / "test.csv"), "--validation-data", str(tmp_path / "validation.csv"),
        "--max-steps", str(STEPS), "--optimizer", "sgd", "--learning-rate", "0.5", "--checkpoint-every", "2",
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


CASES = [("ddp", "classification", "llama"), ("ddp", "classification", "bert"), ("ddp", "causal-lm", "llama")]
CASES += [("fsdp2", "causal-lm", "llama")]


@pytest.mark.parametrize(("how", "task", "model"), CASES)
def test_two_processes_train_what_one_trains(words, tiny_bert, tmp_path, how: str, task: str, model: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = [*words, *TASKS[task]]
    if model == "bert":
        settings += ["--model", tiny_bert, "--target-modules", "query,value"]
    assert main([*settings, "--batch-size", "8", "--output-dir", str(one)]) == 0
    launch(how, [*settings, "--batch-size", "4", "--output-dir", str(two)])
    assert furthest(weights(two), weights(one)) < 1e-4
    first, second = (RunRecord.read(directory / "record.json") for directory in (one, two))
    assert second.machine["processes"] == 2
    assert [e["tokens"] for e in second.history] == [e["tokens"] for e in first.history]  # the same rows in every step
    for a, b in zip(first.history, second.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    assert second.metrics["after"]["loss"] == pytest.approx(first.metrics["after"]["loss"], rel=1e-3)
    assert not (tmp_path / "two.unfinished").exists()
