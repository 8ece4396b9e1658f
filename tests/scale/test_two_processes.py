"""Two processes against one: the same adapter, or an error that says what to do.

One `torchrun` with two gloo processes runs all of worker.py's scenarios; the tests read what it left.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alloralib.adapters.layers import AlloraLayer
from alloralib.ops import scale

from . import worker

TIMEOUT = 80


@pytest.fixture(scope="module")
def results(tiny_llama: str, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two-processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.scale.worker", tiny_llama, str(out)]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    log = out / "log.txt"
    with log.open("w") as file:
        ran = subprocess.Popen(command, cwd=root, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            code = ran.wait(TIMEOUT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ran.pid, signal.SIGKILL)  # torchrun's workers too, where it did not come to its end
    assert code == 0, log.read_text()[-4000:]
    return out


@pytest.fixture(scope="module")
def one_process(tiny_llama: str) -> dict[str, dict[str, torch.Tensor]]:
    return {
        apply_to: worker.adapter(worker.train(worker.adapted(tiny_llama, apply_to), worker.batches(), apply_to))
        for apply_to in ("gradient", "update")
    }


RUNS = {"ddp-gradient": "gradient", "ddp-update": "update", "fsdp2": "gradient", "accelerate-fsdp2": "gradient"}


def load(results: Path, name: str) -> dict[str, torch.Tensor]:
    failed = results / f"{name}.json"
    assert not failed.exists(), failed.read_text()
    return load_file(results / f"{name}.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two adapters, relative to the largest weight of each matrix."""
    assert a.keys() == b.keys()
    assert len(a) == 14
    return max(((a[name] - b[name]).abs().max() / b[name].abs().max()).item() for name in b)


@pytest.mark.parametrize("name", RUNS)
def test_the_adapter_is_the_one_that_one_process_trains(name: str, results: Path, one_process, tiny_llama: str) -> None:
    start = worker.adapter(worker.adapted(tiny_llama))
    expected = one_process[RUNS[name]]
    assert furthest(start, expected) > 0.05  # it did move
    assert furthest(load(results, name), expected) < 2e-5


def test_gradient_accumulation_with_shards_is_that_of_one_process(results: Path, tiny_llama: str) -> None:
    expected = worker.adapter(worker.adding_up(tiny_llama))
    assert furthest(worker.adapter(worker.adapted(tiny_llama)), expected) > 0.05
    assert furthest(load(results, "adding-up"), expected) < 2e-5


def without_the_rule(model) -> None:
    for layer in model.modules():
        if isinstance(layer, AlloraLayer):
            layer.lora_variant.clear()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_without_the_rule_is_told_apart(name: str, results: Path, tiny_llama: str) -> None:
    apply_to = RUNS[name]
    model = worker.adapted(tiny_llama, apply_to)
    without_the_rule(model)
    dropped = worker.adapter(worker.train(model, worker.batches(), apply_to))
    assert furthest(load(results, name), dropped) > 1e-2


def test_norms_of_a_shard_would_be_told_apart(results: Path, tiny_llama: str, monkeypatch) -> None:
    """Each of two processes holding half the columns of A, and taking the norms of those."""
    whole = scale.row_norms
    monkeypatch.setattr(scale, "row_norms", lambda A, B: whole(A[:, : A.shape[1] // 2], B))
    broken = worker.adapter(worker.train(worker.adapted(tiny_llama), worker.batches()))
    assert furthest(load(results, "fsdp2"), broken) > 1e-3


def test_what_is_saved_under_fsdp2_loads_in_stock_peft(results: Path, tiny_llama: str) -> None:
    load(results, "accelerate-fsdp2")
    model = worker.train(worker.adapted(tiny_llama), worker.batches())
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(results / "saved"))
    tokens = worker.batches()[0]
    torch.testing.assert_close(again(input_ids=tokens).logits, model(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)


def test_norms_are_there_again_after_gathering(results: Path, tiny_llama: str) -> None:
    layer = next(m for m in worker.adapted(tiny_llama).modules() if isinstance(m, AlloraLayer) and m.lora_A)
    torch.testing.assert_close(load(results, "norms")["norms"], layer.adapter_row_norms("default"))


REFUSED = {
    "update-under-fsdp2": "apply_to='gradient'",
    "norms-of-a-shard": "gather the weights",
    "sharded-first": "build the adapter first",
    "factors-as-units": "shard whole decoder layers",
    "fsdp1-with-pefts-policy": "shard whole decoder layers",
    "tensor-parallel-by-transformers": "tensor parallelism is not supported",
    "tensor-parallel-by-torch": "tensor parallelism is not supported",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_remedy(name: str, results: Path) -> None:
    file = results / f"{name}.json"
    assert file.exists(), "it ran"
    error = json.loads(file.read_text())
    assert error["type"] == "LayerError", error
    assert REFUSED[name] in error["message"]


def test_a_flattened_factor_is_refused(tiny_llama: str) -> None:
    """A parameter as DeepSpeed's ZeRO-3 leaves it outside the modules that gather it."""
    model = worker.adapted(tiny_llama)
    layer = next(m for m in model.modules() if isinstance(m, AlloraLayer) and m.lora_A)
    layer.lora_A["default"].weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="sharded"):
        model(input_ids=worker.batches()[0])


def block(language: str) -> str:
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    return text.split(f"```{language}\n")[1].split("```")[0]


def test_accelerate_reads_the_documented_configuration(tmp_path, monkeypatch) -> None:
    """The launcher as far as it goes without GPUs: from the file to the plugin that a process builds."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = tmp_path / "fsdp2.yaml"
    file.write_text(block("yaml"), encoding="utf-8")
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(file), "script.py"]))
    assert args.use_fsdp
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    assert plugin.reshard_after_forward is True


def test_the_documented_deepspeed_configuration_shards_no_parameter() -> None:
    assert json.loads(block("json"))["zero_optimization"]["stage"] == 2
