"""Cells in several processes: errors arrive complete, and finished cells are kept."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloralib.errors import ConfigError, TrainingError
from paper.cells import pack, unpack, work_cells


def refuse(key):
    if key["number"] == 1:
        raise ConfigError("cell 1 is wrong", where="here", remedy="mend it")
    return {"value": key["number"]}


def die(key):
    os._exit(9)


def test_an_error_in_another_process_arrives_complete_and_the_other_cells_are_kept(tmp_path) -> None:
    keys = [{"number": i} for i in range(3)]
    with pytest.raises(ConfigError, match="here: cell 1 is wrong") as caught:
        work_cells(keys, refuse, tmp_path, jobs=2, tell=lambda line: None)
    assert (caught.value.where, caught.value.remedy) == ("here", "mend it")
    done = work_cells([keys[0], keys[2]], refuse, tmp_path, jobs=1, tell=lambda line: None)
    assert [cell.result["value"] for cell in done] == [0, 2]


def test_a_process_that_dies_is_reported(tmp_path) -> None:
    with pytest.raises(TrainingError, match="a process of the study died"):
        work_cells([{"number": i} for i in range(2)], die, tmp_path, jobs=2, tell=lambda line: None)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_packed_rows_are_unpacked_unchanged(bits) -> None:
    assert unpack(pack(bits), len(bits)) == bits
    assert len(pack(bits)) == -(-len(bits) // 4)
