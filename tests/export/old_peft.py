"""Run inside the environment of old_peft.txt: load every adapter below a directory, and write what was found.

python old_peft.py DIRECTORY      reads DIRECTORY/*/{base,adapter,input.safetensors}, writes DIRECTORY/*/found.json
"""

import json
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    sys.modules["torchao"] = None  # the one beside us is newer than this PEFT can import

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file


def load(case: Path) -> dict:
    config = json.loads((case / "base" / "config.json").read_text())
    base = getattr(transformers, config["architectures"][0]).from_pretrained(case / "base").eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = LoraConfig.from_pretrained(str(case / "adapter")).to_dict()
        model = PeftModel.from_pretrained(base, str(case / "adapter")).eval()
    inputs = load_file(case / "input.safetensors")
    expected = inputs.pop("logits")
    with torch.no_grad():
        off = float((model(**inputs).logits - expected).abs().max())
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    return {"off": off, "warnings": [str(w.message) for w in caught], "settings": plain}


if __name__ == "__main__":
    assert "alloralib" not in sys.modules
    for case in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        try:
            found = load(case)
        except Exception as error:
            found = {"refused": f"{type(error).__name__}: {error}"}
        (case / "found.json").write_text(json.dumps(found | {"peft": peft.__version__}, default=str))
