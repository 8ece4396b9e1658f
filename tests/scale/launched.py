"""`allora` in one of several processes, under DDP or, on a CPU, under FSDP2: `launched.py ddp|fsdp2 COMMANDS`.

COMMANDS is a JSON file with a list of command lines, which are run one after another. Accelerate ignores FSDP without a
GPU; for `fsdp2` it is made to use it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch


def use_fsdp() -> None:
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
    how, commands = sys.argv[1:]
    if how == "fsdp2":
        use_fsdp()
    code = next((code for words in json.loads(Path(commands).read_text()) if (code := main(words))), 0)
    if code == 0 and torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(code)
