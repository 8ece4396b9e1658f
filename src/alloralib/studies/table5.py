"""Table 5 and Figure 5 (left): LoRA's accuracy by epoch and dropout rate."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import Interrupted
from ..reporting.study_figures import draw_table5
from .frame import Cell, Claim, Finding, Key, Result, Settings, Study, judged, select
from .images import StudyData
from .paper_numbers import TABLE5, TABLE5_RATES

_COMMON: Settings = {"rates": list(TABLE5_RATES), "epochs": 10, "early": 3}


def plan(settings: Settings) -> list[Key]:
    """A cell per rate and seed: one run each."""
    return [{"rate": r, "seed": s} for r in settings["rates"] for s in range(settings["seeds"])]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Accuracy on the validation rows after every epoch. All rates of a seed share init, rows and order."""
    import transformers

    from ..training import train
    from ..training.config import RunConfig

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        config = RunConfig.of(
            {
                **settings["run"], "data_dir": str(data.root), "output_dir": str(Path(scratch) / "run"), "method": "lora",
                "dropout": key["rate"], "epochs": float(settings["epochs"]), "adapter_seed": key["seed"],
                "data_seed": key["seed"],
            },
            where="table5",
        )  # fmt: skip
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a bar per epoch, times fifteen runs
                record = train(config)
        except Interrupted as stopped:
            raise Interrupted(
                "stopped", remedy="the same command goes on with the runs that are left", signal=stopped.signal
            ) from None
    looks = record.validation["history"]
    return {
        "accuracy": [100 * look["accuracy"] for look in looks], "loss": [look["loss"] for look in looks],
        "train_loss": [entry["loss"] for entry in record.history][-1], "validation_rows": record.data["validation"]["rows"],
    }  # fmt: skip


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """The highest rate against none, paired by seed, after three epochs and after all; and how the difference moves."""
    early, late = settings["early"] - 1, settings["epochs"] - 1
    pairs = list(zip(select(cells, rate=max(settings["rates"])), select(cells, rate=0.0), strict=True))
    at = {when: [a.result["accuracy"][when] - b.result["accuracy"][when] for a, b in pairs] for when in (early, late)}
    moved = [b - a for a, b in zip(at[early], at[late], strict=True)]
    best = [float(_best(a) - _best(b)) for a, b in pairs]
    return [
        judged("early", at[early], unit=" points", below=0, over="seeds"),
        judged("late", at[late], unit=" points", above=0, over="seeds"),
        judged("turn", moved, unit=" points", above=0, over="seeds"),
        judged("best-epoch", best, unit=" epochs", above=0, over="seeds"),
    ]


def _best(cell: Cell) -> int:
    """The first epoch with the highest accuracy, from 1."""
    return cell.result["accuracy"].index(max(cell.result["accuracy"])) + 1


_LOW, _HIGH = 0, len(TABLE5_RATES) - 1
_DIFFERENCES = {name: TABLE5[name][_HIGH] - TABLE5[name][_LOW] for name in ("epoch 3", "epoch 10", "epoch of best")}

STUDY = Study(
    name="table5",
    title="LoRA's dropout rate by epoch (and Figure 5, left)",
    claims=(
        Claim("early", "Table 5", "in a short run a high rate is worse than none (accuracy at .4 minus at 0, epoch 3)",
              f"{_DIFFERENCES['epoch 3']:+.2f} points"),
        Claim("late", "Table 5", "in a long run it is better (the same, epoch 10)", f"{_DIFFERENCES['epoch 10']:+.2f} points"),
        Claim("turn", "Table 5", "so the difference rises from epoch 3 to epoch 10",
              f"{_DIFFERENCES['epoch 10'] - _DIFFERENCES['epoch 3']:+.2f} points"),
        Claim("best-epoch", "Table 5", "the best epoch comes later with a high rate",
              f"{_DIFFERENCES['epoch of best']:+.0f} epochs"),
    ),
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft", "accelerate", "datasets"),
    settings={
        "laptop": _COMMON | {
            "seeds": 3,
            "run": {
                "model": "minilm-l6", "data": "rotten_tomatoes", "train_rows": 128, "validation_share": 0.1,
                "validation_rows": 200, "test_rows": 2, "max_length": 48, "r": 16, "batch_size": 8, "learning_rate": 1e-3,
                "schedule": "constant", "optimizer": "adamw_torch",
            },
        },
        "paper": _COMMON | {
            "seeds": 3,
            "run": {
                "model": "Qwen/Qwen2-0.5B", "data": "bias_in_bios", "test_rows": 2, "max_length": 1024, "r": 32,
                "batch_size": 64, "learning_rate": 1e-4, "schedule": "cosine", "optimizer": "adafactor",
            },
        },
    },
    differs={
        "laptop": "MiniLM-L6 on 128 rows of Rotten Tomatoes instead of Qwen2-0.5B on Bias in Bios; 10 epochs and 3 runs as in "
        "the paper; AdamW at a constant 1e-3, r = 16, all linear layers; accuracy on 200 held-out rows.",
        "paper": "Model, data, epochs and runs are the paper's; optimiser, schedule and batch are those of its lab's harness; "
        "rank and targets are not stated.",
    },
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_table5,
)  # fmt: skip
