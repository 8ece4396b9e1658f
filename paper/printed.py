"""The numbers printed in arXiv:2410.09692v1, which our results are compared with.

Accuracies are in percent. Tables that the paper derives from others (2 from 6; 4 from 6 and 7) are derived here too.
"""

from __future__ import annotations

from statistics import fmean

Row = tuple[float, ...]

ETA_SQUARED = (1, 2, 4)

TABLE1_RANKS = (4, 8, 16, 32, 64)
TABLE1: dict[str, Row] = {
    "LoRA": (33.09, 34.01, 35.19, 35.59, 38.13),
    "DoRA": (33.34, 34.14, 35.50, 36.81, 38.07),
    "ALLoRA": (33.45, 34.80, 35.61, 37.18, 38.27),
}
"""Qwen2-0.5B, Emotion, eta = 1, by rank."""

TABLE3_TASKS = ("BoolQ", "PIQA", "SIQA", "HellaSwag", "WinoGrande", "ARC-e", "ARC-c", "OBQA")
TABLE3: dict[tuple[str, int], dict[str, Row]] = {
    ("LLaMA-7B", 16): {
        "DoRA": (70.0, 82.6, 79.7, 83.2, 80.6, 80.6, 65.4, 77.6),
        "ALLoRA+D": (69.4, 82.7, 78.3, 84.8, 80.0, 80.9, 65.7, 79.2),
        "ALLoRA": (69.2, 80.8, 78.5, 83.9, 81.1, 80.8, 65.2, 78.2),
    },
    ("LLaMA-7B", 32): {
        "DoRA": (69.7, 83.4, 78.6, 87.2, 81.0, 81.9, 66.2, 79.2),
        "ALLoRA+D": (70.0, 82.3, 78.1, 84.6, 82.2, 81.0, 67.9, 81.0),
        "ALLoRA": (70.2, 82.6, 78.6, 83.8, 81.1, 81.0, 66.3, 82.6),
    },
    ("LLaMA2-7B", 16): {
        "DoRA": (72.0, 83.1, 79.9, 89.1, 83.0, 84.5, 71.0, 81.2),
        "ALLoRA+D": (71.7, 83.7, 79.5, 91.4, 82.4, 84.3, 69.2, 81.2),
        "ALLoRA": (72.4, 83.9, 80.0, 90.8, 83.0, 84.7, 71.3, 80.2),
    },
    ("LLaMA2-7B", 32): {
        "DoRA": (71.8, 83.7, 76.0, 89.1, 82.6, 83.7, 68.2, 82.4),
        "ALLoRA+D": (72.2, 83.1, 79.6, 91.2, 84.5, 84.5, 71.0, 80.0),
        "ALLoRA": (72.3, 83.8, 79.3, 91.4, 83.0, 85.0, 71.2, 82.2),
    },
    ("LLaMA3-8B", 16): {
        "DoRA": (74.5, 88.8, 80.3, 95.5, 84.7, 90.1, 79.1, 87.2),
        "ALLoRA+D": (75.2, 88.9, 80.8, 95.6, 84.7, 90.2, 80.6, 85.8),
        "ALLoRA": (74.5, 89.1, 80.4, 95.5, 85.8, 90.7, 80.3, 86.0),
    },
    ("LLaMA3-8B", 32): {
        "DoRA": (74.6, 89.3, 79.9, 95.5, 85.6, 90.5, 80.4, 85.8),
        "ALLoRA+D": (74.5, 88.9, 81.8, 95.9, 86.3, 90.4, 80.5, 87.6),
        "ALLoRA": (75.1, 88.7, 81.8, 95.8, 85.4, 91.0, 81.1, 86.6),
    },
}
TABLE3_AVERAGES: dict[tuple[str, int], Row] = {
    ("LLaMA-7B", 16): (77.5, 77.6, 77.2),
    ("LLaMA-7B", 32): (78.4, 78.4, 78.3),
    ("LLaMA2-7B", 16): (80.5, 80.4, 80.8),
    ("LLaMA2-7B", 32): (79.7, 80.8, 81.0),
    ("LLaMA3-8B", 16): (85.0, 85.2, 85.3),
    ("LLaMA3-8B", 32): (85.2, 85.8, 85.7),
}
"""The column of averages as printed: DoRA, ALLoRA+D, ALLoRA."""

TABLE5_RATES = (0.0, 0.05, 0.1, 0.2, 0.4)
TABLE5: dict[str, Row] = {
    "epoch 3": (77.92, 77.96, 77.68, 77.44, 77.22),
    "epoch 10": (78.00, 79.95, 80.50, 80.77, 80.65),
    "best": (79.81, 80.27, 80.54, 80.78, 80.65),
    "epoch of best": (6, 8, 8, 9, 10),
}
"""LoRA, Qwen2-0.5B, Bias in Bios, by dropout rate."""

TABLE6_COLUMNS = (
    *("Qwen2 bios", "Qwen2 emotion", "Qwen2 rotten"),
    *("Snowflake emotion", "Snowflake rotten", "Snowflake yelp"),
    *("OpenELM emotion", "OpenELM rotten", "OpenELM yelp"),
)
TABLE6: dict[int, dict[str, Row]] = {
    1: {
        "LoRA": (70.81, 35.59, 53.19, 87.06, 77.71, 63.61, 84.98, 87.95, 71.41),
        "ALLoRA+D": (71.29, 37.18, 53.64, 86.93, 78.29, 63.55, 86.07, 88.20, 71.32),
        "ALLoRA": (71.53, 37.35, 54.33, 86.98, 78.19, 63.52, 86.04, 88.11, 71.36),
    },
    2: {
        "LoRA": (73.70, 37.76, 54.32, 88.30, 79.34, 64.26, 90.01, 88.74, 71.62),
        "ALLoRA+D": (73.77, 38.52, 54.67, 88.23, 79.44, 64.24, 90.01, 88.95, 71.63),
        "ALLoRA": (73.99, 38.09, 55.37, 88.52, 79.16, 64.33, 89.93, 89.04, 71.68),
    },
    4: {
        "LoRA": (75.60, 38.68, 54.90, 88.95, 80.04, 64.76, 91.33, 89.55, 71.79),
        "ALLoRA+D": (75.72, 39.00, 55.83, 89.08, 80.24, 64.61, 91.27, 89.61, 71.83),
        "ALLoRA": (75.52, 39.47, 55.68, 88.91, 80.24, 64.76, 91.43, 89.47, 71.82),
    },
}
"""Text classification, by eta squared."""

TABLE7_COLUMNS = (
    *("Qwen2 emotion", "Qwen2 rotten", "Snowflake emotion", "Snowflake rotten", "OpenELM emotion", "OpenELM rotten"),
)
TABLE7: dict[int, dict[str, Row]] = {
    1: {
        "ALLoRA-OD": (36.91, 52.31, 87.24, 77.47, 86.31, 88.11),
        "ASF-LoRA": (36.40, 53.43, 87.30, 78.03, 83.44, 87.58),
        "LoRAxeta": (35.59, 53.19, 87.06, 77.71, 84.98, 87.95),
    },
    2: {
        "ALLoRA-OD": (38.15, 53.55, 88.22, 79.16, 89.86, 89.02),
        "ASF-LoRA": (37.20, 54.17, 87.74, 78.18, 86.26, 88.22),
        "LoRAxeta": (36.61, 54.47, 87.62, 78.72, 88.77, 88.39),
    },
    4: {
        "ALLoRA-OD": (38.67, 54.95, 88.97, 80.21, 91.27, 89.38),
        "ASF-LoRA": (38.45, 54.41, 87.97, 79.23, 89.64, 88.80),
        "LoRAxeta": (37.63, 53.70, 88.49, 79.31, 90.25, 89.08),
    },
}
"""The other methods of the family; the ALLoRA rows printed beside them are those of Table 6."""


def gaps_table2(other: str) -> dict[int, Row]:
    """ALLoRA minus LoRA (the left half of Table 2) or ALLoRA+D (the right half), by eta squared and column of Table 6."""
    return {eta2: _minus(rows["ALLoRA"], rows[other]) for eta2, rows in TABLE6.items()}


def gaps_table4(other: str) -> dict[int, Row]:
    """ALLoRA minus another method of Table 7, by eta squared and column of Table 7."""
    places = [TABLE6_COLUMNS.index(column) for column in TABLE7_COLUMNS]
    return {
        eta2: _minus(tuple(TABLE6[eta2]["ALLoRA"][place] for place in places), rows[other]) for eta2, rows in TABLE7.items()
    }


def cells(gaps: dict[int, Row]) -> list[float]:
    """All entries of a table of differences."""
    return [gap for row in gaps.values() for gap in row]


def audit(gaps: dict[int, Row]) -> dict[str, float]:
    """The number of wins, ties and losses among the entries, and their mean."""
    values = cells(gaps)
    wins, ties = sum(v > 0 for v in values), sum(v == 0 for v in values)
    return {"wins": wins, "ties": ties, "losses": len(values) - wins - ties, "mean": round(fmean(values), 4)}


def without(gaps: dict[int, Row], model: str) -> dict[int, Row]:
    """The differences of Table 2 without the columns of one model."""
    kept = [i for i, column in enumerate(TABLE6_COLUMNS) if not column.startswith(model)]
    return {eta2: tuple(row[i] for i in kept) for eta2, row in gaps.items()}


def _minus(a: Row, b: Row) -> Row:
    return tuple(round(x - y, 2) for x, y in zip(a, b, strict=True))  # the paper prints two decimals
