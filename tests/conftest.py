"""Fixtures and the environment of all tests: no model hub, no windows."""

import csv
import gc
import os
import random
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("ALLORA_TOKEN_CACHE", "0")  # tests must not share tokenized rows

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")

WORDS = [
    *("good", "bad", "film", "story", "actor", "plot", "great", "poor", "fine", "awful"),
    *("the", "a", "was", "is", "and", "very", "not", "music", "scene", "ending"),
]


LONG = ("tests/real/", "tests/scale/", "tests/training/test_compile.py", "tests/adapters/test_machinery.py", "tests/paper/")
"""Files that take longest: they come first, or a process would be alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _freeze_imported_modules() -> None:
    """Keep imported modules out of garbage collection, which accelerate starts after every training: it took .5 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> str:
    """The directory of a random two-layer Llama with a word-level tokenizer, quick enough for a run per test."""
    from .adapters.models import llama
    from .tiny import save, word_level

    return save(tmp_path_factory.mktemp("models") / "tiny-llama", llama(), word_level(WORDS))


@pytest.fixture
def reviews(tmp_path) -> Path:
    """60 short texts of two classes that a model can tell apart, and a prompt and completion made of each."""
    return write_reviews(tmp_path / "reviews.csv")


def write_reviews(path: Path) -> Path:
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "prompt", "completion"])
        for i in range(60):
            good = i % 2 == 0
            verdict = rng.choice(["good", "great"] if good else ["bad", "awful"])
            text = " ".join([*rng.sample(WORDS[10:], rng.randint(3, 7)), verdict])
            writer.writerow([text, "pos" if good else "neg", text, " fine" if good else " poor"])
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_llama) -> Callable[[str], Path]:
    """The directory of a finished run by its name in `tests/trained.py`. It is for reading: copy it to change it."""
    from .trained import train_once

    base = tmp_path_factory.getbasetemp()
    root = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base  # one for all workers
    (root / "trained").mkdir(exist_ok=True)
    return lambda name: train_once(name, root / "trained", tiny_llama)
