"""Table, losses and plot of the stacks records."""

from benchmarks import growth, measuring, stacks


def made_up(slope: float) -> measuring.Record:
    """A record in which every method costs 1 ms per layer and `slope` seconds per GFLOP more than the frozen model."""
    points: list[measuring.Record] = []
    for point in stacks.points(None):
        gflop = 1e-3 * point.r * point.tokens * point.width * point.layers / 1024
        frozen = 1e-9 * point.tokens * point.width**2 * point.layers
        more = 1e-3 * point.layers + slope * gflop
        points.append(
            stacks.asdict(point)
            | {
                "floor": {"frozen": 1, "adapters": gflop * 1e9, "rule": 0, "ratio": 1.05},
                "kept": {"allora": 5, "peft-lora": 10},
                "seconds": {"frozen": [frozen] * 3} | {arm: [frozen + more] * 3 for arm in growth.ARMS},
            }
        )
    return {"what": "made up", **measuring.environment(), "points": points}


def test_the_table_has_a_row_for_each_point_and_a_blank_where_a_record_lacks_it() -> None:
    record = made_up(slope=0.02)
    part = record | {"points": [p for p in record["points"] if p["dtype"] == "float32"]}
    rows = growth.table({"all": record, "part": part}).splitlines()
    assert rows[0] == (
        "| | FLOP ratio | all: frozen | ALLoRA | ALLoRA, no oneDNN | PEFT LoRA "
        "| part: frozen | ALLoRA | ALLoRA, no oneDNN | PEFT LoRA |"
    )
    assert len(rows) == 2 + len(stacks.points(None))
    limit, more = 1e-9 * 512 * 1024**2, 1e-3 + 0.02 * 1e-3 * 16 * 512
    times = f"{limit * 1000:.0f} ms" + f" | {1 + more / limit:.2f}" * 3
    assert f"| center | 1.050 | {times} | {times} |" in rows
    assert sum(row.endswith("|  |  |  |  |") for row in rows) == sum(p.dtype == "bfloat16" for p in stacks.points(None))


def test_points_at_which_allora_loses_are_found() -> None:
    record = made_up(slope=0.02)
    assert growth.slower(record) == []
    point = stacks.find(record, stacks.Point(r=64))
    assert point is not None
    point["seconds"]["allora"] = [2 * value for value in point["seconds"]["peft-lora"]]
    assert growth.slower(record) == [("rank 64", 2.0)]


def test_the_plot_is_drawn(tmp_path) -> None:
    growth.draw(made_up(slope=0.02), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
