"""What simpler tools answer on the same rows: the honest comparison for a trained classifier.

    majority        the most frequent class of the training rows
    tf-idf          logistic regression on TF-IDF of words and pairs of words; no language model
    linear probe    logistic regression on the features of the frozen model (their mean over tokens)

They read the training rows only, and are scored on the test rows like the trained model. The L2 penalty of a logistic
regression is chosen by cross-validation on the training rows.

scikit-learn is imported when it is needed: a language model's run does not wait for it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Evaluation, classification_metrics

MAJORITY, TFIDF, PROBE = "majority", "tf-idf", "linear probe"
_FOLDS = 5
_PENALTIES: Any = np.logspace(-3, 2, 6)
"""C of scikit-learn, the inverse of the L2 penalty, for features whose root mean square is 1."""
_ITERATIONS = 200


def majority(train: Sequence[int], test: Sequence[int], labels: Sequence[str]) -> Evaluation:
    """Always the most frequent class of the training rows; of equally frequent ones the first.

    Args:
        train, test: class indices of the training and test rows.
        labels: the names of the classes.
    """
    counts = Counter(train)
    most = max(range(len(labels)), key=lambda index: counts[index])
    return _evaluation([most] * len(test), test, labels)


def tfidf(
    train_texts: Sequence[str], train: Sequence[int], test_texts: Sequence[str], test: Sequence[int], labels: Sequence[str]
) -> Evaluation:
    """Logistic regression on TF-IDF of words and pairs of words, with sublinear term frequency.

    Args:
        train_texts, test_texts: the texts; a pair of texts as one, joined by a space.
        train, test, labels: as in `majority`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer: Any = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        features = vectorizer.fit_transform(train_texts)
    except ValueError:  # no text has a word, in a script without them or in codes
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        features = vectorizer.fit_transform(train_texts)
    scale = np.sqrt(features.shape[1] / features.getnnz()) if features.getnnz() else 1.0
    model = logistic_regression(features * scale, train)
    return _evaluation(model.predict(vectorizer.transform(test_texts) * scale).tolist(), test, labels)


def linear_probe(
    train_features: NDArray[np.float32], train: Sequence[int], test_features: NDArray[np.float32], test: Sequence[int],
    labels: Sequence[str],
) -> Evaluation:  # fmt: skip
    """Logistic regression on the features of the frozen model.

    Args:
        train_features, test_features: (rows, hidden size), from `features.mean_features`.
        train, test, labels: as in `majority`.
    """
    scale = 1 / max(float(np.sqrt(np.square(train_features).mean())), 1e-12)
    model = logistic_regression(train_features * scale, train)
    return _evaluation(model.predict(test_features * scale).tolist(), test, labels)


def logistic_regression(features: Any, targets: Sequence[int], *, intercept: bool = True) -> Any:
    """A fitted logistic regression whose L2 penalty has the lowest cross-validated log loss on these rows.

    Folds are stratified and drawn with a fixed seed. With a class of one row there are no folds, and C is 1.

    Args:
        features: (rows, features), dense or sparse, root mean square about 1.
        targets: class indices, at least two different ones.
        intercept: whether to fit one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    settings: Any = {"max_iter": _ITERATIONS, "fit_intercept": intercept}
    folds = min(_FOLDS, *Counter(targets).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that has nearly converged is as good a comparison
        warnings.simplefilter("ignore", FutureWarning)
        if folds < 2:
            return LogisticRegression(C=1.0, **settings).fit(features, targets)
        split = StratifiedKFold(folds, shuffle=True, random_state=0)
        search: Any = LogisticRegressionCV(Cs=_PENALTIES, cv=split, scoring="neg_log_loss", **settings)
        return search.fit(features, targets)


def _evaluation(predicted: Sequence[int], truth: Sequence[int], labels: Sequence[str]) -> Evaluation:
    metrics = classification_metrics(np.asarray(predicted, dtype=np.int64), np.asarray(truth, dtype=np.int64), len(labels))
    items = [
        {"row": row, "predicted": labels[p], "truth": labels[t], "correct": p == t}
        for row, (p, t) in enumerate(zip(predicted, truth, strict=True))
    ]
    return Evaluation(metrics, items)
