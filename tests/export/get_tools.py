"""Get what the tests of other programs need: an older PEFT, llama.cpp's converter and vLLM's loader of adapters.

    python -m tests.export.get_tools DIRECTORY

The converter and the loader are Python files of source distributions, of which nothing is built or installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SOURCES = {
    "llama-cpp-python==0.3.36": r"vendor/llama\.cpp/(convert_\w+\.py|(?:conversion|gguf-py/gguf)/\w+\.py)",
    "vllm==0.33.0": r"vllm/lora/((?:peft_helper|utils|lora_model|lora_weights)\.py)",
}
"""Source distribution -> which of its files (the group is the path to write)."""
VLLM_BUILD = ["setuptools<81", "setuptools-scm", "setuptools-rust", "wheel", "packaging", "jinja2"]


def pip(*words: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], check=True, env=os.environ | environment)


def download(requirement: str, target: Path) -> Path:
    """Download a source distribution. pip asks it for its metadata, for which vLLM wants torch beside its build tools."""
    name, _, version = requirement.partition("==")
    words = ["download", "--no-deps", "--no-binary", name, "--dest", str(target / name), requirement]
    if name == "vllm":
        pip("install", "--target", str(target / "build"), *VLLM_BUILD)
        pip(
            *words, "--no-build-isolation",
            PYTHONPATH=str(target / "build"), VLLM_TARGET_DEVICE="empty", VLLM_VERSION_OVERRIDE=version,
        )  # fmt: skip
    else:
        pip(*words)
    return next((target / name).glob("*.tar.gz"))


def extract(archive: Path, pattern: str, target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            match = re.fullmatch(rf"[^/]+/{pattern}", member.name)
            content = tar.extractfile(member) if match else None
            if match and content:
                path = target / match[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())


def main(directory: Path) -> None:
    requirements = Path(__file__).with_name("old_peft.txt")
    pip("install", "--no-deps", "--upgrade", "--target", str(directory / "old_peft"), "--requirement", str(requirements))
    for requirement, pattern in SOURCES.items():
        with tempfile.TemporaryDirectory() as scratch:
            extract(download(requirement, Path(scratch)), pattern, directory / requirement.partition("==")[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
