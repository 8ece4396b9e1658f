"""Which of several processes this one is, under torchrun, accelerate launch or alone."""

from __future__ import annotations

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is no accelerator. accelerate has to be told, or each process of a launch would train by itself."""
    return not torch.accelerator.is_available()


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return PartialState(cpu=on_cpu()).is_main_process


def all_agree(mine: bool) -> bool:
    """Whether every process says so; every one has to ask."""
    state = PartialState(cpu=on_cpu())
    if state.num_processes == 1:
        return mine
    said = torch.tensor([int(mine)], device=state.device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MIN)
    return bool(said.item())
