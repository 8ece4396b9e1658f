"""Weights that are loaded: mapped from their file, not copied into memory."""

from pathlib import Path

import pytest
import torch

from alloralib.training.models import load_model

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")
@pytest.mark.parametrize(("dtype", "mapped"), [(torch.float32, True), (torch.bfloat16, False)])
def test_weights_stay_in_the_file_unless_they_are_converted(tiny_llama, dtype, mapped):
    model = load_model(tiny_llama, task="causal-lm", labels=None, dtype=dtype, pad_token_id=None)
    file = str(Path(tiny_llama) / "model.safetensors")
    spans = [line.split()[0].split("-") for line in MAPS.read_text().splitlines() if line.endswith(file)]
    inside = [any(int(a, 16) <= p.data_ptr() < int(b, 16) for a, b in spans) for p in model.parameters()]
    assert all(inside) if mapped else not any(inside)
