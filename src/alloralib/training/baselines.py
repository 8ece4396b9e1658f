"""The baselines of a run: what simpler tools answer on its test rows, having read the rows that it trains on."""

from __future__ import annotations

import sys
from typing import Any

from ..data.table import Table
from ..evaluation.baselines import MAJORITY, PROBE, TFIDF, linear_probe, majority, tfidf
from ..evaluation.features import mean_features
from ..evaluation.limits import limits_of
from ..evaluation.metrics import Evaluation
from ..evaluation.paired import compare_evaluations
from ..evaluation.shots import NoShots, make_shots
from .batches import BucketBatches, lengths_of
from .compiling import eagerly
from .prepare import Run
from .processes import is_main_process
from .trainer import RunTrainer


def compute_baselines(trainer: RunTrainer) -> dict[str, Evaluation]:
    """The baselines of a run, by name.

    Those of a classifier read the training rows that the run will see, no more: a short run on a large set is not compared
    with a probe that has read all of it. That of a language model is the same model with a few of all training rows as
    examples in its prompt (`evaluation.shots`); where there can be none, this says why on standard error. Plain text has no
    prompt, and no baseline.

    Args:
        trainer: before its first step, when the adapter changes nothing.
    """
    run, config = trainer.run, trainer.run.config
    if run.labels is None:
        plain_text = config.columns.text is not None
        return {} if plain_text or config.skip_baselines else _few_shots(trainer)
    rows = planned_rows(trainer)
    train, test = run.examples["train"].select(rows), run.examples["test"]
    targets, truth = list(train["labels"]), list(test["labels"])
    found = {MAJORITY: majority(targets, truth, run.labels)}
    if config.skip_baselines or len(set(targets)) < 2:  # a run of a few steps may see one class only
        return found
    if config.kind == "classification":
        texts = _texts(run, run.parts.train.take(rows)), _texts(run, run.parts.test)
        found[TFIDF] = tfidf(texts[0], targets, texts[1], truth, run.labels)
    with eagerly(config.compile):
        features = [mean_features(trainer.model, part, run.collate, config.batch_size).numpy() for part in (train, test)]
    found[PROBE] = linear_probe(features[0], targets, features[1], truth, run.labels)
    return found


def against(baselines: dict[str, Evaluation], tuned: Evaluation) -> dict[str, dict[str, float]]:
    """The metrics of the baselines, and how the tuned model compares on the same rows: `difference` (tuned minus baseline) of
    the accuracies or, without answers, of the losses per token, and the `p_value` of McNemar's exact test or of the sign test
    on the rows' losses."""
    score = "accuracy" if "accuracy" in tuned.metrics else "loss"
    found: dict[str, dict[str, float]] = {}
    for name, baseline in baselines.items():
        difference = tuned.metrics[score] - baseline.metrics[score]
        p_value = compare_evaluations(baseline, tuned)["p_value"]
        found[name] = baseline.metrics | {"difference": difference, "p_value": p_value}
    return found


def planned_rows(trainer: RunTrainer) -> list[int]:
    """The training rows that the run will see, as row numbers in ascending order."""
    config, lengths = trainer.run.config, lengths_of(trainer.run.examples["train"])
    batches = trainer.planned_steps() * config.gradient_accumulation
    sampler = BucketBatches(lengths, config.batch_size * trainer.args.world_size, config.data_seed)
    if batches >= len(sampler):
        return list(range(len(lengths)))
    return sorted(row for batch in sampler.global_batches()[:batches] for row in batch)


def _few_shots(trainer: RunTrainer) -> dict[str, Evaluation]:
    """The untuned language model with examples in its prompt."""
    run, config = trainer.run, trainer.run.config
    try:
        shots = make_shots(
            config.kind, run.parts.train, run.parts.test, config.columns, run.processor, run.examples["test"],
            max_length=run.max_length, limits=limits_of(trainer.model), seed=config.data_seed,
        )  # fmt: skip
    except NoShots as reason:
        _say(f"the base model is not tested with examples in its prompt: {reason}")
        return {}
    most = len(shots.examples)
    fewer = sum(count < most for count in shots.counts)
    if fewer:
        _say(f"{fewer} of {len(shots.counts)} prompts have room for fewer than {most} examples within {run.max_length} tokens")
    found = run.test_with(trainer.model, shots)
    return {f"{most}-shot": Evaluation(found.metrics | {"rows_with_fewer_examples": fewer}, found.items)}


def _say(what: str) -> None:
    if is_main_process():
        print(f"allora: {what}", file=sys.stderr)


def _texts(run: Run, table: Table) -> list[str]:
    """The texts of a table; a pair as one text."""
    columns = run.config.columns
    parts: list[Any] = [table.columns[name] for name in (columns.text, columns.text_pair) if name is not None]
    return [" ".join(row) for row in zip(*parts, strict=True)]
