"""The processes of a distributed run (torchrun, accelerate launch), or the only one."""

from __future__ import annotations

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is no accelerator. accelerate must be told so, or each process of a launch would train alone."""
    return not torch.accelerator.is_available()


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return PartialState(cpu=on_cpu()).is_main_process
