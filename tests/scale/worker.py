"""What each of the processes of test_two_processes.py runs: `python -m torch.distributed.run ... worker.py MODEL OUT`.

Every scenario trains the same tiny Llama on the same batches and leaves its adapter in OUT/<scenario>.safetensors, or the
error it must raise in OUT/<scenario>.json.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from alloralib import AlloraConfig
from alloralib.adapters.layers import AlloraLayer

STEPS, BATCH, LENGTH = 4, 8, 9
ETA = 1.7
RATES = {"gradient": 3.0, "update": 0.02}


def adapted(path: str, apply_to: str = "gradient") -> PeftModel:
    """The same weights in every process, B off zero so that the scales differ from row to row."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "down_proj", "embed_tokens"]
    model = get_peft_model(model, AlloraConfig(r=3, eta=ETA, apply_to=apply_to, target_modules=targets))  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(7)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name:
            p.data.copy_(0.3 * torch.randn(p.shape, generator=g))
    return model


def batches(rank: int = 0, world: int = 1) -> list[Tensor]:
    """This process's share of each global batch, rows of equal length."""
    g = torch.Generator().manual_seed(3)
    share = BATCH // world
    return [torch.randint(1, 23, (BATCH, LENGTH), generator=g)[rank * share : (rank + 1) * share] for _ in range(STEPS)]


def optimizer(model: nn.Module, apply_to: str) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = torch.optim.SGD if apply_to == "gradient" else torch.optim.AdamW
    return kind(trained, lr=RATES[apply_to])


def train(
    model: nn.Module, shares: list[Tensor], apply_to: str = "gradient", backward: Callable | None = None, opt=None
) -> nn.Module:
    """A plain loop."""
    opt = opt or optimizer(model, apply_to)
    for tokens in shares:
        opt.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward() if backward is None else backward(loss)
        opt.step()
    return model


def adapter(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights, whole, by name; every process has to call this."""
    found = {}
    for name, p in model.named_parameters():
        if "lora_" in name:
            whole = p.detach().full_tensor() if isinstance(p, DTensor) else p.detach()
            found[name.removeprefix("module.")] = whole.clone()
    return found


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__.endswith("LlamaDecoderLayer")]


def shard(model: nn.Module) -> nn.Module:
    """FSDP2 as PyTorch's documentation does it: each decoder layer, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for layer in decoder_layers(model):
        fully_shard(layer)
    return fully_shard(model)


def ddp(path: str, apply_to: str) -> dict[str, Tensor]:
    model = nn.parallel.DistributedDataParallel(adapted(path, apply_to))
    return adapter(train(model, batches(dist.get_rank(), dist.get_world_size()), apply_to))


def adding_up(
    path: str, rank: int = 0, world: int = 1, prepare: Callable[[nn.Module], nn.Module] = nn.Module.eval
) -> nn.Module:
    """Gradient accumulation: two batches to an optimizer step."""
    model = prepare(adapted(path))
    opt = optimizer(model, "gradient")
    for k, tokens in enumerate(batches(rank, world)):
        (model(input_ids=tokens, labels=tokens).loss / 2).backward()
        if k % 2:
            opt.step()
            opt.zero_grad()
    return model


def fsdp2(path: str, apply_to: str = "gradient") -> dict[str, Tensor]:
    model = shard(adapted(path, apply_to))
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return adapter(train(model, batches(dist.get_rank(), dist.get_world_size()), apply_to))


def accelerate_fsdp2(path: str, out: Path) -> dict[str, Tensor]:
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True)
    # On a CPU accelerate forgets the plugin and trains with DDP; from here on it does what it does on GPUs.
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    assert accelerator.is_fsdp2
    model = adapted(path)
    model, opt = accelerator.prepare(model, optimizer(model, "gradient"))
    assert all(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)
    train(model, batches(dist.get_rank(), dist.get_world_size()), backward=accelerator.backward, opt=opt)
    trained = adapter(model)
    if accelerator.is_main_process:
        # PEFT would also save the frozen embedding, because it carries an adapter, and take it from the sharded model
        accelerator.unwrap_model(model).save_pretrained(out / "saved", state_dict=trained, save_embedding_layers=False)
    return trained


def sharded_first(path: str) -> None:
    model = shard(AutoModelForCausalLM.from_pretrained(path))
    get_peft_model(model, AlloraConfig(r=3, target_modules=["q_proj"]))


def factors_as_units(path: str) -> None:
    from torch.distributed.fsdp import fully_shard

    model = adapted(path)
    for layer in model.modules():
        if isinstance(layer, AlloraLayer) and layer.lora_A:
            fully_shard(layer.lora_A["default"])
            fully_shard(layer.lora_B["default"])
    train(shard(model), batches()[:1])


def fsdp1_with_pefts_policy(path: str) -> None:
    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = adapted(path)
    cpu = torch.device("cpu")
    train(
        FullyShardedDataParallel(model, auto_wrap_policy=fsdp_auto_wrap_policy(model), use_orig_params=True, device_id=cpu),
        batches()[:1],
    )


def norms_of_a_shard(path: str) -> None:
    model = shard(adapted(path))
    layer = next(m for m in model.modules() if isinstance(m, AlloraLayer) and m.lora_A)
    layer.adapter_row_norms("default")


def norms_after_gathering(path: str) -> dict[str, Tensor]:
    model = shard(adapted(path))
    decoder_layers(model)[0].unshard()
    layer = next(m for m in model.modules() if isinstance(m, AlloraLayer) and m.lora_A)
    return {"norms": layer.adapter_row_norms("default")}


def tensor_parallel_by_transformers(path: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(path, tp_plan="auto")
    get_peft_model(model, AlloraConfig(r=3, target_modules=["q_proj", "down_proj"]))


def tensor_parallel_by_torch(path: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = AutoModelForCausalLM.from_pretrained(path)
    parallelize_module(
        model, init_device_mesh("cpu", (dist.get_world_size(),)), {"model.layers.0.mlp.up_proj": ColwiseParallel()}
    )
    get_peft_model(model, AlloraConfig(r=3, target_modules=["up_proj"]))


def main(path: str, out: Path) -> None:
    trained: dict[str, Callable[[], dict[str, Tensor]]] = {
        "ddp-gradient": lambda: ddp(path, "gradient"),
        "ddp-update": lambda: ddp(path, "update"),
        "fsdp2": lambda: fsdp2(path),
        "adding-up": lambda: adapter(adding_up(path, dist.get_rank(), dist.get_world_size(), shard)),
        "norms": lambda: norms_after_gathering(path),
        "accelerate-fsdp2": lambda: accelerate_fsdp2(path, out),
    }
    refused: dict[str, Callable[[], object]] = {
        "update-under-fsdp2": lambda: fsdp2(path, "update"),
        "norms-of-a-shard": lambda: norms_of_a_shard(path),
        "sharded-first": lambda: sharded_first(path),
        "factors-as-units": lambda: factors_as_units(path),
        "fsdp1-with-pefts-policy": lambda: fsdp1_with_pefts_policy(path),
        "tensor-parallel-by-transformers": lambda: tensor_parallel_by_transformers(path),
        "tensor-parallel-by-torch": lambda: tensor_parallel_by_torch(path),
    }
    first = dist.get_rank() == 0
    for name, run in (refused | trained).items():
        try:
            result = run()
        except Exception as error:
            if first:
                content = {"type": type(error).__name__, "message": str(error)}
                (out / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        else:
            if first and name in trained:
                save_file({k: v.contiguous() for k, v in copy.copy(result).items()}, out / f"{name}.safetensors")
        dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    main(sys.argv[1], Path(sys.argv[2]))
    dist.destroy_process_group()
    os._exit(0)  # not to wait for the threads of whatever was refused half-way
