"""The picture of an adapter, from what `allora inspect` found."""

import pytest

from alloralib.reporting.inspect import draw_adapter

LAYER = {"mean_row": 0.1, "max_row": 0.3}
FOUND = {
    "layers": [LAYER | {"name": f"model.layers.{i}.{kind}"} for i in range(3) for kind in ("q_proj", "v_proj")]
    + [LAYER | {"name": "model.embed_tokens"}],
    "method": "allora", "r": 4, "eta": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
@pytest.mark.parametrize("eta", [2.0, None])
def test_the_ending_says_the_format(tmp_path, name: str, start: bytes, eta: float | None) -> None:
    draw_adapter(FOUND | {"eta": eta}, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
