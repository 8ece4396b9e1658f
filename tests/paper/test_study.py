"""Findings from values, and every study of the catalogue is complete."""

import json

import pytest

from paper.catalogue import QUICK, TITLES, load
from paper.study import mean_finding, range_finding


def test_findings() -> None:
    sure = mean_finding([1.0, 1.1, 0.9, 1.05], above=0)
    assert (sure.verdict, sure.spread, sure.rule) == ("confirmed", "95 % over 4 seeds", "above 0")
    mixed = range_finding([-1.0, 2.0], above=0, over="sets")
    assert (mixed.verdict, mixed.low, mixed.high) == ("inconclusive", -1, 2)
    assert range_finding([3.0], below=2, over="exact").verdict == "not confirmed"


@pytest.mark.parametrize("name", TITLES)
def test_a_study_is_complete(name) -> None:
    study = load(name)
    assert study.name == name
    assert set(study.settings) == set(study.differs) == {"laptop", "paper"}
    assert set(study.settings["laptop"]) == set(study.settings["paper"])
    keys = [json.dumps(key, sort_keys=True) for key in study.plan(study.settings["laptop"])]
    assert len(set(keys)) == len(keys)
    claims = [claim.name for claim in study.claims]
    assert claims
    assert len(set(claims)) == len(claims)


def test_quick_studies_exist() -> None:
    assert set(QUICK) <= set(TITLES)
