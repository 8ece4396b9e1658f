"""Table 5 and Figure 5 (left): LoRA's accuracy by epoch and dropout rate."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from alloralib.errors import Interrupted

from ..cells import Cell, Key, Result, Settings, values
from ..data import StudyData
from ..drawing import axes_grid, mean_curve, rate_colors, save
from ..printed import TABLE5, TABLE5_RATES
from ..study import Claim, Study, by_mean, keys, minus

COMMON: Settings = {"rates": list(TABLE5_RATES), "epochs": 10, "early": 3}


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The accuracy on the validation rows after every epoch. All rates of a seed share initial values, rows and order."""
    import transformers

    from alloralib.training import train
    from alloralib.training.config import RunConfig

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
            with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                record = train(config)
        except Interrupted as stopped:
            raise Interrupted(
                "interrupted", remedy="the same command continues with the runs that are left", signal=stopped.signal
            ) from None
    looks = record.validation["history"]
    return {
        "accuracy": [100 * look["accuracy"] for look in looks], "loss": [look["loss"] for look in looks],
        "train_loss": [entry["loss"] for entry in record.history][-1], "validation_rows": record.data["validation"]["rows"],
    }  # fmt: skip


def ahead(cells: Sequence[Cell], settings: Settings, epoch: int) -> list[float]:
    """The accuracy at the highest rate minus that without dropout after an epoch, per seed."""
    high, none = (values(cells, "accuracy", rate=rate) for rate in (max(settings["rates"]), 0.0))
    return [a[epoch - 1] - b[epoch - 1] for a, b in zip(high, none, strict=True)]


def turn(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """How that difference changes from the early to the last epoch, per seed."""
    return minus(*(ahead(cells, settings, settings[when]) for when in ("epochs", "early")))


def best_epochs(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The first epoch with the best accuracy, at the highest rate minus without dropout, per seed."""
    high, none = (
        [float(curve.index(max(curve))) for curve in values(cells, "accuracy", rate=rate)]
        for rate in (max(settings["rates"]), 0.0)
    )
    return minus(high, none)


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Accuracy by epoch, a color per rate: the mean of the runs, and thin the runs themselves; the table below."""
    rates, early = settings["rates"], settings["early"]
    figure, axes = axes_grid(2, 1, size=(5.6, 2.6), height_ratios=[2.2, 1])
    ax, table = axes[0][0], axes[1][0]
    epochs = list(range(1, settings["epochs"] + 1))
    rows: list[list[str]] = [[], [], [], []]
    for rate, color in zip(rates, rate_colors(rates), strict=True):
        curves = values(cells, "accuracy", rate=rate)
        mean = mean_curve(curves)
        for curve in curves:
            ax.plot(epochs, curve, lw=0.5, alpha=0.4, color=color)
        ax.plot(epochs, mean, "o-", ms=3, lw=1.5, color=color, label=f"{rate:g}")
        for row, value in zip(rows, (mean[early - 1], mean[-1], max(mean)), strict=False):
            row.append(f"{value:.2f}")
        rows[3].append(str(mean.index(max(mean)) + 1))
    ax.set_xlabel("epoch", fontsize=8)
    ax.set_ylabel("accuracy, %", fontsize=8)
    ax.legend(frameon=False, fontsize=7, title="dropout", title_fontsize=7)
    table.axis("off")
    names = [f"epoch {early}", f"epoch {epochs[-1]}", "best", "epoch of best"]
    drawn = table.table(rows, rowLabels=names, colLabels=[f"{rate:g}" for rate in rates], loc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    save(figure, path)


PRINTED = {name: TABLE5[name][-1] - TABLE5[name][0] for name in ("epoch 3", "epoch 10", "epoch of best")}

STUDY = Study(
    name="table5",
    claims=[
        Claim("early", "Table 5", "In a short run a high dropout rate is worse than none (accuracy at .4 minus at 0, epoch 3).",
              f"{PRINTED['epoch 3']:+.2f} points",
              by_mean(lambda cells, s: ahead(cells, s, s["early"]), unit=" points", below=0)),
        Claim("late", "Table 5", "In a long run it is better (accuracy at .4 minus at 0, epoch 10).",
              f"{PRINTED['epoch 10']:+.2f} points",
              by_mean(lambda cells, s: ahead(cells, s, s["epochs"]), unit=" points", above=0)),
        Claim("turn", "Table 5", "So this difference rises from epoch 3 to epoch 10.",
              f"{PRINTED['epoch 10'] - PRINTED['epoch 3']:+.2f} points", by_mean(turn, unit=" points", above=0)),
        Claim("best-epoch", "Table 5", "The best epoch comes later with a high rate (epoch at .4 minus epoch at 0).",
              f"{PRINTED['epoch of best']:+.0f} epochs", by_mean(best_epochs, unit=" epochs", above=0)),
    ],
    settings={
        "laptop": COMMON | {
            "seeds": 3,
            "run": {
                "model": "minilm-l6", "data": "rotten_tomatoes", "train_rows": 128, "validation_share": 0.1,
                "validation_rows": 200, "test_rows": 2, "max_length": 48, "r": 16, "batch_size": 8, "learning_rate": 1e-3,
                "schedule": "constant", "optimizer": "adamw_torch",
            },
        },
        "paper": COMMON | {
            "seeds": 3,
            "run": {
                "model": "Qwen/Qwen2-0.5B", "data": "bias_in_bios", "test_rows": 2, "max_length": 1024, "r": 32,
                "batch_size": 64, "learning_rate": 1e-4, "schedule": "cosine", "optimizer": "adafactor",
            },
        },
    },
    differs={
        "laptop": "MiniLM-L6 on 128 rows of Rotten Tomatoes instead of Qwen2-0.5B on Bias in Bios; 10 epochs and 3 runs as in "
        "the paper. AdamW at a constant 1e-3, r = 16, all linear layers; accuracy on 200 held-out rows.",
        "paper": "Model, data, epochs and runs are the paper's. Optimizer, schedule and batch size are those of the authors' "
        "public code. The paper does not state the rank and the target layers.",
    },
    plan=lambda s: keys(rate=s["rates"], seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft", "accelerate", "datasets"),
)  # fmt: skip
