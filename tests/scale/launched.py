"""`allora` in one of several processes, under DDP or, on a CPU, under FSDP2.

Accelerate forgets FSDP where there is no GPU; with `fsdp2` as the first argument it is made to remember.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch


def remember_fsdp() -> None:
    from accelerate import DistributedType
    from accelerate.state import AcceleratorState

    os.environ |= {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }  # fmt: skip
    made = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    from alloralib.cli.main import main

    torch.set_num_threads(1)
    words = sys.argv[1:]
    if words[0] == "fsdp2":
        remember_fsdp()
    code = main(words[1:])
    if code == 0 and torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(code)
