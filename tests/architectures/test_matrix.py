"""Train, save, reload in stock PEFT in a fresh process, evaluate, merge and export: every architecture and task."""

import pytest
import torch
from safetensors.torch import load_file

from alloralib.records import RunRecord

from ..cli.commands import json_of
from .runs import CASES, reloaded, trained


@pytest.mark.parametrize("name", CASES)
def test_what_is_evaluated_is_what_was_trained(name: str, root, capsys) -> None:
    """The saved run is opened again and has the metrics of the trained model; the base model has those from before."""
    directory = trained(name, root)
    logits = load_file(directory / "trained.safetensors")
    assert (logits["run"] - logits["base"]).abs().max() > 0.01  # a reload that loses the adapter would be seen
    record = RunRecord.read(directory / "run" / "record.json")
    found = json_of(capsys, ["evaluate", str(directory / "run")])
    for when, which in (("before", "base"), ("after", "tuned")):
        assert found[which] == pytest.approx(record.metrics[when], rel=1e-4), which


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_every_form_of_the_adapter_computes_the_trained_logits(name: str, seed: int, root) -> None:
    """The run's directory and its export in stock PEFT, and the merged model in stock transformers.

    The base is loaded with another seed than for training: a weight that is neither in its file nor in the adapter would be
    another one.
    """
    expected = load_file(trained(name, root) / "trained.safetensors")["run"]
    logits, failed = reloaded(seed, root)
    assert name not in failed, failed[name]
    found = {what: logits[f"{name}/{what}"] for what in ("run", "exported", "merged")}
    torch.testing.assert_close(found, dict.fromkeys(found, expected), rtol=1e-4, atol=1e-5)
