"""The baselines that a trained classifier is compared with, and the features that the linear probe reads."""

import numpy as np
import pytest
import torch

from alloralib.data.examples import build_examples, collator
from alloralib.data.forms import Columns
from alloralib.data.table import Table
from alloralib.evaluation.baselines import linear_probe, logistic_regression, majority, tfidf
from alloralib.evaluation.features import mean_features

from ..adapters.models import bert, llama
from ..tiny import word_pieces
from ..trained import sentences

NAMES = ["bad", "good"]


def rows(n: int) -> tuple[list[str], list[int]]:
    texts, good = zip(*sentences(n), strict=True)
    return list(texts), [int(value) for value in good]


def blobs(n: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Points around one center per class."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(classes, 8)) * 3
    targets = [i % classes for i in range(n)]
    return (centers[targets] + rng.normal(size=(n, 8))).astype(np.float32), targets


def test_the_majority_is_that_of_the_training_rows() -> None:
    found = majority([1, 1, 0], [0, 0, 0, 1], NAMES)
    assert found.metrics["accuracy"] == 0.25
    assert [item["predicted"] for item in found.items] == ["good"] * 4
    assert majority([1, 0], [0], NAMES).metrics["accuracy"] == 1  # of equally frequent classes the first


def test_tfidf_finds_the_words_that_decide() -> None:
    texts, targets = rows(80)
    assert tfidf(texts[:60], targets[:60], texts[60:], targets[60:], NAMES).metrics["accuracy"] > 0.9


def test_tfidf_reads_texts_without_words() -> None:
    texts = ["?!", "!?!", "...", ".. .", "?!!", "....."]
    assert tfidf(texts, [0, 0, 1, 1, 0, 1], ["!?", "..."], [0, 1], NAMES).metrics["accuracy"] == 1


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_probe_separates_and_does_not_depend_on_the_size_of_the_features(size: float) -> None:
    train, targets = blobs(90)
    test, truth = blobs(60, seed=1)
    found = linear_probe(size * train, targets, size * test, truth, ["a", "b", "c"])
    assert found.metrics["accuracy"] > 0.9
    assert found.items == linear_probe(train, targets, test, truth, ["a", "b", "c"]).items


@pytest.mark.parametrize("baseline", ["majority", "tf-idf", "linear probe"])
def test_the_answers_of_the_test_rows_are_not_read(baseline: str) -> None:
    texts, targets = rows(60)
    train, _ = blobs(40, 2)
    test, _ = blobs(20, 2, seed=1)

    def predicted(truth: list[int]) -> list[str]:
        if baseline == "majority":
            found = majority(targets[:40], truth, NAMES)
        elif baseline == "tf-idf":
            found = tfidf(texts[:40], targets[:40], texts[40:], truth, NAMES)
        else:
            found = linear_probe(train, targets[:40], test, truth, NAMES)
        return [item["predicted"] for item in found.items]

    assert predicted(targets[40:]) == predicted([1 - t for t in targets[40:]])


def test_a_class_of_one_row() -> None:
    train, _ = blobs(5)
    model = logistic_regression(train, [0, 0, 1, 1, 2])
    assert set(model.predict(train)) == {0, 1, 2}


def test_the_penalty_is_chosen_by_cross_validation() -> None:
    """Noise asks for a strong penalty, well separated classes for a weak one."""
    clear, targets = blobs(120, 2)
    noise = np.random.default_rng(0).normal(size=(120, 60)).astype(np.float32)
    strong, weak = logistic_regression(noise, targets), logistic_regression(clear / clear.std(), targets)
    assert strong.C_[0] < weak.C_[0]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_features_are_means_over_the_tokens_of_each_row_alone(kind: str) -> None:
    """Whatever the batch: padding does not count."""
    tokenizer = word_pieces()
    model = bert() if kind == "bert" else llama()
    model.resize_token_embeddings(len(tokenizer))
    texts = ["a film", "an awful story of an actor", "plot", "music and a scene"]
    table = Table("rows", "", {"text": texts, "label": ["x", "y", "x", "y"]})
    examples = build_examples("classification", table, Columns(text="text", label="label"), processor=tokenizer)
    found = mean_features(model, examples, collator("classification", tokenizer), 4)
    assert found.dtype == torch.float32
    for row, text in enumerate(texts):
        with torch.inference_mode():
            alone = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-5)
