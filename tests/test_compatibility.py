"""What 0.1.0 wrote still loads: adapter, record and checkpoint (tests/fixtures/README.md)."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alloralib import AlloraConfig, RunConfig, train
from alloralib.cli.main import main
from alloralib.records import RunRecord

FIXTURE = Path(__file__).parent / "fixtures" / "run-0.1.0"
KINDS = {"classifier": AutoModelForSequenceClassification, "language": AutoModelForCausalLM}


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the runs, with its directory as the current one: the records name model and data relative to it."""
    shutil.copytree(FIXTURE, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def _base(name: str):
    torch.manual_seed(0)
    base = KINDS[name].from_pretrained("model")
    base.config.pad_token_id = 0
    return base


@pytest.mark.parametrize("name", KINDS)
def test_stock_peft_gives_the_logits_it_gave(old: Path, name: str) -> None:
    expected = load_file("stock_peft_logits.safetensors")
    model = PeftModel.from_pretrained(_base(name), name, config=LoraConfig.from_pretrained(name)).eval()
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_adapter_is_trained_further_by_the_rule(old: Path, name: str) -> None:
    expected = load_file("stock_peft_logits.safetensors")
    model = PeftModel.from_pretrained(_base(name), name, is_trainable=True)
    assert type(model.peft_config["default"]) is AlloraConfig
    assert model.peft_config["default"].eta == 2.0
    logits = model.eval()(input_ids=expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_record_and_the_commands_read_it(old: Path, name: str, capsys) -> None:
    record = RunRecord.read(old / name / "record.json")
    assert RunConfig.of(record.config).max_steps == 8
    assert main(["inspect", name]) == 0
    assert main(["evaluate", name, "--json"]) == 0
    assert main(["merge", name, "--output-dir", "merged"]) == 0


def test_the_stopped_run_goes_on_to_where_the_whole_one_came(old: Path) -> None:
    record = train(RunConfig.load("stopped.unfinished/run.yaml", {}), resume=True)
    assert [entry["step"] for entry in record.history] == list(range(1, 9))
    whole, resumed = (load_file(f"{name}/adapter_model.safetensors") for name in ("language", "stopped"))
    assert whole.keys() == resumed.keys()
    for key in whole:
        torch.testing.assert_close(resumed[key], whole[key], rtol=1e-3, atol=1e-4)
