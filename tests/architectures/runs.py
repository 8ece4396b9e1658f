"""One short run of every architecture, each made once for all tests and all test processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import alloralib.training.run as training
from alloralib.cli.main import main

from ..trained import command, jsonl, make_images
from . import reload
from .models import CLASSIFIERS, IMAGE_CLASSIFIERS, LANGUAGE_MODELS, OTHER_CLASSIFIERS, OTHER_LANGUAGE_MODELS, Make, save_model

WORDS = ["good", "bad", "film", "story", "actor", "plot", "great", "poor", "fine", "awful"]
STEPS = {"max_steps": 3, "batch_size": 4, "learning_rate": 0.02}


@dataclass(frozen=True)
class Case:
    """An architecture with a task.

    Attributes:
        make: the model and its tokenizer.
        task: classification, with three classes, or causal-lm.
        flags: of `allora train`, besides the usual ones.
    """

    make: Make
    task: str
    flags: tuple[tuple[str, str], ...] = ()

    def prepare(self, directory: Path) -> dict[str, Any]:
        """Write model and rows; returns the flags of `allora train`."""
        model = save_model(self.make, directory / "model")
        flags = (
            STEPS | {"task": self.task, "model": model, "data": rows(self.task, directory / "rows.jsonl")} | dict(self.flags)
        )
        if self.task == "causal-lm":
            flags |= {"prompt_column": "prompt", "completion_column": "completion"}
        return flags


CASES = {
    **{f"{name}, classifier": Case(make, "classification") for name, make in (CLASSIFIERS | OTHER_CLASSIFIERS).items()},
    **{f"{name}, language model": Case(make, "causal-lm") for name, make in (LANGUAGE_MODELS | OTHER_LANGUAGE_MODELS).items()},
    **{f"{name}, image classifier": Case(make, "image-classification") for name, make in IMAGE_CLASSIFIERS.items()},
    "BERT with its embeddings, classifier": Case(
        CLASSIFIERS["BERT"], "classification", (("target_modules", "word_embeddings,query"),)
    ),
    "Llama with its embeddings, language model": Case(
        LANGUAGE_MODELS["Llama"], "causal-lm", (("target_modules", "embed_tokens,q_proj"),)
    ),
    "GPT-2 with Conv1D layers by name, language model": Case(
        LANGUAGE_MODELS["GPT-2"], "causal-lm", (("target_modules", "c_attn,c_fc,c_proj"),)
    ),
}


WITH_PADDING = {"DeBERTa-v2", "ALBERT", "MPNet", "T5", "BART", "Gemma 2"}
"""Architectures whose blocks see the padding: they do not have transformers' SDPA attention or its mark of blocks."""
ALL_LOGITS = {"Gemma 2"}
"""Language models that change their logits after the output layer, so that the loss is not computed in chunks."""


def rows(task: str, path: Path) -> str:
    """Rows of very different lengths, most of them longer than a sliding window; or images."""
    if task == "image-classification":
        return make_images(path.parent / "images")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(40)]
    if task == "classification":
        return jsonl(path, [{"text": text, "label": ["good", "bad", "mixed"][i % 3]} for i, text in enumerate(texts)])
    return jsonl(path, [{"prompt": text + " is", "completion": " " + rng.choice(WORDS)} for text in texts])


def inputs(case: Case, directory: Path) -> list[str]:
    """What trained and reloaded models are compared on: rows that need padding, or the paths of images."""
    if case.task == "image-classification":
        return [str(directory / "images" / name) for name in ("light/0.png", "dark/1.png")]
    return ["good film", "the plot was poor and the actor awful", "a", "the story is great"]


def trained(name: str, root: Path) -> Path:
    """The directory of the case of that name: model, run, exported, merged, and the trained model's logits."""
    directory = _directory(name, root)
    with FileLock(f"{directory}.lock"):
        if not directory.is_dir():
            directory.mkdir()
            with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
                _train(CASES[name], directory, patch)
    assert (directory / "trained.safetensors").is_file(), "it failed when another test asked for it"
    return directory


def _directory(name: str, root: Path) -> Path:
    return root / name.replace(", ", "-").replace(" ", "-")


def _train(case: Case, directory: Path, patch: pytest.MonkeyPatch) -> None:
    found: dict[str, Tensor] = {}
    write = training.write_results

    def write_results(trainer: Any, *args: Any) -> None:
        shown = inputs(case, directory)
        found["run"] = reload.logits_of(trainer.model, trainer.run.processor, shown)
        with trainer.model.disable_adapter():
            found["base"] = reload.logits_of(trainer.model, trainer.run.processor, shown)
        write(trainer, *args)

    patch.setattr(training, "write_results", write_results)
    assert main(command(directory, **case.prepare(directory))) == 0
    assert main(["merge", str(directory / "run"), "--output-dir", str(directory / "merged")]) == 0
    assert main(["export", str(directory / "run"), "--format", "peft", "--output", str(directory / "exported")]) == 0
    save_file(found, directory / "trained.safetensors")


def reloaded(seed: int, root: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Logits of every case by "name/what", from a fresh process, and why the others could not be loaded."""
    jobs, output = root / "jobs.json", root / f"reloaded-{seed}.safetensors"
    for name in CASES:
        with contextlib.suppress(Exception):  # a case that cannot be trained fails in its own test
            trained(name, root)
    done = [name for name in CASES if (_directory(name, root) / "trained.safetensors").is_file()]
    with FileLock(root / "reloaded.lock"):
        if not output.is_file():
            jobs.write_text(json.dumps({name: _job(name, _directory(name, root)) for name in done}))
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            words = [sys.executable, reload.__file__, str(jobs), str(seed), str(output)]
            subprocess.run(words, check=True, env=environment, capture_output=True, text=True, timeout=300)
    with safe_open(output, "pt") as file:
        failed = file.metadata() or {}
    return load_file(output), failed


def _job(name: str, directory: Path) -> dict[str, Any]:
    paths = {what: str(directory / what) for what in ("model", "run", "exported", "merged")}
    case = CASES[name]
    classes = {"classification": 3, "image-classification": 2}.get(case.task)
    return paths | {"task": case.task, "inputs": inputs(case, directory), "classes": classes}
