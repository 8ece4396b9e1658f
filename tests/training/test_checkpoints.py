"""The checkpoint format: states survive bit by bit, damage is found."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloralib.errors import CheckpointError
from alloralib.training.checkpoints import from_json, path_of, read_checkpoint, read_latest, steps_of, to_json, write_checkpoint

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(),
    st.integers(0, 3).map(lambda n: torch.arange(n)), st.integers(1, 3).map(lambda n: np.arange(n, dtype=np.uint32)),
)  # fmt: skip
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 9)), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(states)
def test_any_state_survives(state) -> None:
    tensors: dict[str, torch.Tensor] = {}
    assert same(from_json(json.loads(json.dumps(to_json(state, tensors, "s"))), tensors), state)


def test_states_that_need_pickle_are_refused() -> None:
    with pytest.raises(CheckpointError, match="without pickle"):
        to_json({"f": lambda: None}, {}, "s")


def write(root, step: int) -> None:
    write_checkpoint(root, step, {"a": {"w": torch.full((3,), float(step))}}, {"step": step}, {"x.json": "{}"})


def test_round_trip_and_rotation(tmp_path) -> None:
    for step in (2, 10, 100):
        write(tmp_path, step)
    assert steps_of(tmp_path) == [10, 100]
    checkpoint = read_latest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.step) == (path_of(tmp_path, 100), 100)
    assert checkpoint.state == {"step": 100}
    assert torch.equal(checkpoint.tensors["a"]["w"], torch.full((3,), 100.0))
    assert read_latest(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["a.safetensors", "state.json", "manifest.json", "x.json"])
def test_every_file_is_guarded(tmp_path, name: str) -> None:
    write(tmp_path, 1)
    file = path_of(tmp_path, 1) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"damaged|format|update"):
        read_checkpoint(path_of(tmp_path, 1))
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        read_latest(tmp_path)


def test_views_and_shared_tensors_are_written_in_full(tmp_path) -> None:
    w = torch.arange(6.0).view(2, 3)
    write_checkpoint(tmp_path, 1, {"a": {"row": w[0], "all": w, "columns": w.T}}, {})
    tensors = read_checkpoint(path_of(tmp_path, 1)).tensors["a"]
    assert torch.equal(tensors["row"], w[0])
    assert torch.equal(tensors["columns"], w.T)
