"""A compiled run trains by the same rule, writes the same files, goes on bit by bit, and says what compiling costs.

Most of it needs no code to be generated: the backend "aot_eager" traces forward and backward as inductor's do, with the
same guards, and runs what it traced. Two tests use inductor itself.
"""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from alloralib import AlloraConfig
from alloralib.cli.main import main
from alloralib.errors import Interrupted, ModelError
from alloralib.ops import lowrank
from alloralib.records import RunRecord
from alloralib.training import compiling
from alloralib.training.config import RunConfig
from alloralib.training.run import train

from ..adapters.models import bert, gradients, llama
from ..cli.test_train import contents

TRACED = {"backend": "aot_eager", "dynamic": True}


@pytest.fixture(autouse=True)
def _fresh():
    """Compiled code is kept by the code it was made of, in the whole process, and so are the counters."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch) -> None:
    monkeypatch.setattr(compiling, "COMPILER", TRACED)
