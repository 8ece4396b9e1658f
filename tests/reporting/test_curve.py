"""The loss curve, from a record."""

from alloralib.reporting.curve import draw_loss

from ..test_records import record


def test_the_curve_is_a_picture_that_depends_on_the_record_alone(tmp_path) -> None:
    draw_loss(record(), tmp_path / "a.png")
    draw_loss(record(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw_loss(record(history=record().history[:4]), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()
