"""The whole job, from a file of rows to a saved adapter: `allora train` against a plain script.

Three arms, each in a fresh process, in an order that rotates between repetitions:

    allora          `allora train` with ALLoRA; settings at their defaults, except those made equal below
    plain           `plain_job.py`: transformers' Trainer and PEFT's LoRA at their defaults, all rows padded to the longest
    plain-dynamic   the same with a collator that pads each batch to its longest row

Equal for all: the model (SmolLM2-135M-Instruct, float32), the file, the examples (every row once per epoch, a new sample for
each repetition), their tokens, batch size, number of updates, AdamW, peak learning rate, linear decay without warm-up, gradient
clipping at 1, r = 16 on all linear layers. Different: the rule, the order of the rows, and which rows share a batch.

The whole process is timed, imports included. `allora train` also evaluates the test rows before and after training, which the
script does not do: it gets few of them here, and the time of its phase `evaluate` is subtracted. Everything else that it does
more counts against it: checks for leaks and empty rows, preflight with its timed steps, a checkpoint every tenth of the run,
the rule's history, curve and card. No cache is used: every job starts from the text.

Accuracy is measured afterwards, by the same evaluator for all arms, which loads the adapter with stock PEFT. On ARC-Easy it is
the choice with the largest likelihood, on banking77 a greedy answer that equals the intent's name.

    python -m benchmarks.job --data-dir DIR

Finished jobs are kept in `--work-dir` and not run again. Other settings need another directory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .measuring import Record, environment, record_of, write

PLAIN = Path(__file__).resolve().with_name("plain_job.py")
TITLES = {
    "allora": "**`allora train`**",
    "plain": "plain script, rows padded to the longest of all",
    "plain-dynamic": "plain script, rows padded to the longest of the batch",
}
SETS = {"banking77": 1280, "arc_easy": 256}
"""Training rows of each set, chosen so that `allora train` takes a minute or two on two cores."""
MODEL = "smollm2-135m"
LEARNING_RATE = 1e-3
BATCH_SIZE = 16
OWN_TEST_ROWS = 16
MAX_NEW_TOKENS = 20


def write_rows(name: str, data_dir: Path, directory: Path, train_rows: int, test_rows: int, seed: int) -> None:
    """Write train.jsonl, test.jsonl, and own-test.jsonl with the few test rows for `allora train`: prompts and completions."""
    from alloralib.data.parts import load_parts
    from alloralib.data.registry import REGISTRY

    known = REGISTRY[name]
    parts = load_parts(
        known.kind,
        known.columns,
        data=name,
        data_dir=data_dir,
        train_rows=train_rows,
        test_rows=test_rows,
        data_seed=seed,
        held_out="random",
    )
    directory.mkdir(parents=True, exist_ok=True)
    for part, table, count in (
        ("train", parts.train, train_rows), ("test", parts.test, test_rows), ("own-test", parts.test, OWN_TEST_ROWS)
    ):  # fmt: skip
        columns = table.columns
        if name == "banking77":
            rows = [
                {"prompt": f"{text}\nIntent:", "completion": " " + label.replace("_", " ")}
                for text, label in zip(columns["text"], columns["label"], strict=True)
            ]
        else:
            rows = [
                {"prompt": prompt, "choices": choices, "answer": answer, "completion": _right(choices, answer)}
                for prompt, choices, answer in zip(columns["prompt"], columns["choices"], columns["answer"], strict=True)
            ]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:count])
        (directory / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def _right(choices: list[str], answer: int | str) -> str:
    return choices[answer] if isinstance(answer, int) else answer


def command(arm: str, name: str, rows: Path, output: Path, model: str, epochs: int, seed: int) -> list[str]:
    """The command line of an arm."""
    if arm != "allora":
        dynamic = ["--dynamic-padding"] if arm == "plain-dynamic" else []
        return [
            *(sys.executable, str(PLAIN), "--model", model, "--train", str(rows / "train.jsonl")),
            *("--output-dir", str(output), "--epochs", str(epochs), "--batch-size", str(BATCH_SIZE)),
            *("--learning-rate", str(LEARNING_RATE), "--seed", str(seed), *dynamic),
        ]
    columns = ("--completion-column", "completion") if name == "banking77" else ()
    return [
        *(sys.executable, "-m", "alloralib.cli", "train", "--model", model, "--overwrite"),
        *("--task", "causal-lm" if name == "banking77" else "multiple-choice", "--prompt-column", "prompt", *columns),
        *("--data", str(rows / "train.jsonl"), "--test-data", str(rows / "own-test.jsonl"), "--output-dir", str(output)),
        *("--epochs", str(epochs), "--batch-size", str(BATCH_SIZE), "--learning-rate", str(LEARNING_RATE)),
        *("--schedule", "linear", "--warmup", "0", "--data-seed", str(seed), "--adapter-seed", str(seed)),
    ]


def run_job(arm: str, name: str, rows: Path, output: Path, model: str, epochs: int, seed: int) -> dict[str, Any]:
    """Run one job in a process of its own.

    Returns:
        seconds: of the process, without the evaluation of test rows by `allora train`. phases: seconds as the arm reports
        them, and the rest. updates, tokens, padded_tokens, trained_parameters: how much work was done.
    """
    with tempfile.TemporaryDirectory() as cache, (output.parent / f"{output.name}.log").open("w", encoding="utf-8") as log:
        environment = os.environ | {"HF_DATASETS_CACHE": cache, "ALLORA_TOKEN_CACHE": "0"}
        words = command(arm, name, rows, output, model, epochs, seed)
        start = time.perf_counter()
        code = subprocess.run(words, env=environment, stdout=log, stderr=log, check=False).returncode
        wall = time.perf_counter() - start
    if code:
        raise SystemExit(f"{arm} on {name} failed with exit code {code}: see {log.name}")
    if arm == "allora":
        record = json.loads((output / "record.json").read_text(encoding="utf-8"))
        phases, data = record["seconds"], record["preflight"]["data"]
        done = {
            "updates": len(record["history"]),
            "tokens": data["tokens"] * epochs,
            "padded_tokens": data["padded_tokens"] * epochs,
            "trained_parameters": record["adapter"]["trained_parameters"],
        }
    else:
        done = json.loads((output / "job.json").read_text(encoding="utf-8"))
        phases = done.pop("seconds")
        del done["loss"]
    evaluated = phases.pop("evaluate", 0.0)
    phases["rest"] = round(wall - evaluated - sum(phases.values()), 3)
    return done | {"seconds": round(wall - evaluated, 3), "evaluated_seconds": evaluated, "phases": phases}


def evaluate(name: str, adapter: Path, test: Path, model: str) -> dict[str, float]:
    """Accuracy with its 95 % interval. Runs in a process of its own."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from alloralib.evaluation.choice import evaluate_choices
    from alloralib.evaluation.generation import generate_answers
    from alloralib.evaluation.metrics import exact_match
    from alloralib.training.models import load_tokenizer

    torch.manual_seed(0)
    rows = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    tokenizer = load_tokenizer(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter)).eval()
    prompts = [row["prompt"] for row in rows]
    if name == "banking77":
        said = generate_answers(tuned, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=32)
        metrics, key = exact_match(said, [row["completion"] for row in rows]).metrics, "exact_match"
    else:
        choices = [row["choices"] for row in rows]
        answers = [c.index(row["completion"]) for c, row in zip(choices, rows, strict=True)]
        metrics, key = evaluate_choices(tuned, tokenizer, prompts, choices, answers, batch_size=16).metrics, "accuracy"
    return {"accuracy": metrics[key], "low": metrics[f"{key}_low"], "high": metrics[f"{key}_high"]}


def measure(arguments: argparse.Namespace) -> Record:
    """Run every job that is not finished, evaluate each, and return the record of all."""
    from alloralib.training.models import locate

    model = locate(MODEL)
    arms, sets = arguments.arms.split(","), arguments.sets.split(",")
    settings = {
        "rows": {name: arguments.rows or SETS[name] for name in sets}, "epochs": arguments.epochs,
        "test_rows": arguments.test_rows, "learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE,
    }  # fmt: skip
    jobs: dict[str, dict[str, list[dict[str, Any]]]] = {name: {arm: [] for arm in arms} for name in sets}
    for repetition in range(arguments.repetitions):
        for name in sets:
            rows = arguments.work_dir / name / f"rows-{repetition}"
            write_rows(name, arguments.data_dir, rows, settings["rows"][name], arguments.test_rows, repetition)
            turn = repetition % len(arms)
            for arm in arms[turn:] + arms[:turn]:
                output = arguments.work_dir / name / f"{arm}-{repetition}"
                jobs[name][arm].append(_once(arm, name, rows, output, model, settings, repetition))
            _check_same_work({arm: jobs[name][arm][-1] for arm in arms}, name)
    return {
        "what": "the whole job, from rows to a saved adapter: SmolLM2-135M-Instruct, float32, r = 16, all linear layers",
        "settings": settings,
        **environment(),
        "jobs": jobs,
    }


def _once(arm: str, name: str, rows: Path, output: Path, model: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The result of a job: from its file if it is finished, else run now."""
    kept = output.parent / f"{output.name}.json"
    asked = settings | {"rows": settings["rows"][name]}
    done = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if done and done["settings"] != asked:
        raise SystemExit(f"{kept} was written with other settings; choose another --work-dir")
    if not done:
        for old in (output, output.with_name(output.name + ".unfinished")):
            shutil.rmtree(old, ignore_errors=True)
        print(f"{name}, repetition {seed + 1}, {arm} ...", end=" ", flush=True)
        done = run_job(arm, name, rows, output, model, settings["epochs"], seed) | {"settings": asked}
        print(f"{done['seconds']:.1f} s", flush=True)
        write(done, kept)
    if "accuracy" not in done:
        words = [sys.executable, "-m", "benchmarks.job", "--evaluate", name, str(output), str(rows / "test.jsonl"), model]
        said = subprocess.run(words, capture_output=True, text=True, check=False)
        if said.returncode:
            raise SystemExit(f"the evaluation of {output} failed with exit code {said.returncode}:\n{said.stderr[-2000:]}")
        done |= json.loads(said.stdout.splitlines()[-1])
        print(f"{name}, repetition {seed + 1}, {arm}: accuracy {done['accuracy']:.3f}", flush=True)
        write(done, kept)
    del done["settings"]
    return done


def _check_same_work(done: dict[str, dict[str, Any]], name: str) -> None:
    for key in ("updates", "tokens", "trained_parameters"):
        if len({job[key] for job in done.values()}) > 1:
            raise SystemExit(f"the arms did different work on {name}: {key} { {arm: job[key] for arm, job in done.items()} }")


def summary(record: dict[str, Any], name: str, arm: str) -> dict[str, Any]:
    """An arm of one set, compared with `allora train`.

    Returns:
        seconds: median over the repetitions. training: the same of the training phase. ratio: `seconds` over those of
        `allora train`. ratios: smallest and largest ratio within a repetition. padding: tokens of padding as a share of the
        others. accuracy, low, high: means over the repetitions. inside: number of repetitions in which each accuracy is
        inside the other's interval.
    """
    jobs, ours = record["jobs"][name][arm], record["jobs"][name]["allora"]

    def median(of: list[dict[str, Any]]) -> float:
        return statistics.median(job["seconds"] for job in of)

    within = [a["seconds"] / b["seconds"] for a, b in zip(jobs, ours, strict=True)]
    mean = {key: statistics.fmean(job[key] for job in jobs) for key in ("accuracy", "low", "high")}
    return mean | {
        "seconds": median(jobs),
        "training": statistics.median(job["phases"]["train"] for job in jobs),
        "ratio": median(jobs) / median(ours),
        "ratios": (min(within), max(within)),
        "padding": sum(job["padded_tokens"] for job in jobs) / sum(job["tokens"] for job in jobs) - 1,
        "inside": sum(
            a["low"] <= b["accuracy"] <= a["high"] and b["low"] <= a["accuracy"] <= b["high"]
            for a, b in zip(jobs, ours, strict=True)
        ),
    }


def table(records: dict[str, Record]) -> str:
    """A Markdown table of all jobs of every record."""
    lines = [
        "| processor | set | arm | seconds | of which training | of `allora train` (repetitions) | padding | accuracy "
        "| inside each other's 95 % interval |",
        "|---" * 9 + "|",
    ]
    for kind, record in records.items():
        for name, arms in record["jobs"].items():
            for arm, jobs in arms.items():
                found = summary(record, name, arm)
                ratio = inside = ""
                if arm != "allora":
                    ratio = f"{found['ratio']:.2f} ({found['ratios'][0]:.2f} to {found['ratios'][1]:.2f})"
                    inside = f"{found['inside']} of {len(jobs)}"
                lines.append(
                    f"| {kind} | {name}, {jobs[0]['updates']} updates | {TITLES[arm]} | {found['seconds']:.0f} "
                    f"| {found['training']:.0f} | {ratio} | {found['padding']:.1%} "
                    f"| {found['accuracy']:.3f} ({found['low']:.3f} to {found['high']:.3f}) | {inside} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("ALLORA_DATA_DIR", "../shared/data"))
    parser.add_argument("--data-dir", type=Path, default=data, help="directory of the data sets")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/job"), help="for rows, adapters, results [%(default)s]")
    parser.add_argument("--sets", default=",".join(SETS), help="data sets, separated by commas [%(default)s]")
    parser.add_argument("--arms", default=",".join(TITLES), help="arms, separated by commas, with allora [%(default)s]")
    parser.add_argument("--rows", type=int, help=f"training rows of every set {SETS}")
    parser.add_argument("--epochs", type=int, default=1, help="epochs [%(default)s]")
    parser.add_argument("--test-rows", type=int, default=400, help="test rows for the accuracy [%(default)s]")
    parser.add_argument("--repetitions", type=int, default=2, help="times every job is run [%(default)s]")
    parser.add_argument("--evaluate", nargs=4, metavar=("SET", "ADAPTER", "TEST", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.evaluate:
        name, adapter, test, model = arguments.evaluate
        print(json.dumps(evaluate(name, Path(adapter), Path(test), model)))
        return
    record = measure(arguments)
    write(record, record_of("job"))
    print(record["what"], table({"this processor": record}), sep="\n\n")


if __name__ == "__main__":
    main()
