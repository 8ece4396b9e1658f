"""MNIST from its idx files and CIFAR-10 from a zip of images, below a directory that is handed in; no torchvision."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.registry import REGISTRY
from ..errors import ConfigError, DataError

MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class StudyData:
    """The real data a study is given.

    Args:
        directory: with folders `mnist`, `cifar10` and those of registered sets; None where nothing was given.
    """

    directory: Path | None

    def hashes(self, needs: tuple[str, ...]) -> dict[str, str]:
        """sha256 of the files of each needed set, in one.

        Raises:
            AlloraError: no directory, or a set is not in it.
        """
        return {name: _digest(self._files(name)) for name in needs}

    @property
    def registered(self) -> str | None:
        """Where registered sets are, as `data.parts.load_parts` takes it: None for the hub."""
        return None if self.directory is None else str(self.root)

    @cached_property
    def root(self) -> Path:
        """The directory.

        Raises:
            ConfigError: none was given, or it is not there.
        """
        remedy = "give --data-dir, a directory with folders such as mnist and cifar10"
        if self.directory is None:
            raise ConfigError("this study needs data, and no directory was given", remedy=remedy)
        if not self.directory.is_dir():
            raise ConfigError("no such directory", where=str(self.directory), remedy=remedy)
        return self.directory

    def mnist(self, part: str) -> tuple[Tensor, Tensor]:
        """Images (N, 784) float32, standardised with the training set's mean .1307 and deviation .3081; labels (N,) int64."""
        return _mnist(*(_mnist_file(self.root, stem) for stem in MNIST_FILES[part]))

    def cifar10(self, part: str, per_class: int) -> tuple[Tensor, Tensor]:
        """Images (N, 3072) float32 in [-1, 1], the first `per_class` of each class by file name; labels (N,) int64."""
        return _cifar10(_cifar10_file(self.root), part, per_class)

    def _files(self, name: str) -> list[Path]:
        if name == "mnist":
            return [_mnist_file(self.root, stem) for stems in MNIST_FILES.values() for stem in stems]
        if name == "cifar10":
            return [_cifar10_file(self.root)]
        folders = REGISTRY[name].folders if name in REGISTRY else (name,)  # the reader looks into these
        there = [self.root / folder for folder in folders if (self.root / folder).is_dir()]
        if not there:
            raise DataError(f"no folder {name}", where=str(self.root), remedy="`allora tasks` says what the set is")
        return sorted(path for folder in there for path in folder.iterdir() if path.is_file())


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped or not.

    Raises:
        DataError: it is no idx file, or cut off.
    """
    remedy = "fetch the file again: the format is http://yann.lecun.com/exdb/mnist's"
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), remedy=remedy) from None
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError("not an idx file of unsigned bytes", where=str(path), remedy=remedy)
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3])
    if values.size != int(np.prod(shape)):
        raise DataError(f"{values.size} bytes where {shape} are announced", where=str(path), remedy=remedy)
    return values.reshape(shape)


@lru_cache(maxsize=2)
def _mnist(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    x, y = read_idx(images), read_idx(labels)
    if x.shape[1:] != (28, 28) or y.shape != x.shape[:1]:
        raise DataError(f"images {x.shape}, labels {y.shape}", where=str(images), remedy="give MNIST's own files")
    pixels = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32)) / 255
    return (pixels - 0.1307) / 0.3081, torch.from_numpy(y.astype(np.int64))


@lru_cache(maxsize=2)
def _cifar10(path: Path, part: str, per_class: int) -> tuple[Tensor, Tensor]:
    from PIL import Image

    images, labels = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            for label, name in enumerate(CIFAR10_CLASSES):
                found = [n for n in names if n.startswith(f"{part}/{name}/") and not n.endswith("/")][:per_class]
                if len(found) < per_class:
                    raise DataError(f"{len(found)} images of {part}/{name}, {per_class} needed", where=str(path))
                for n in found:
                    with Image.open(io.BytesIO(archive.read(n))) as image:
                        images.append(np.asarray(image.convert("RGB"), dtype=np.float32).reshape(-1))
                    labels.append(label)
        pixels = torch.from_numpy(np.stack(images)) / 127.5 - 1
    except DataError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"not a zip of 32 x 32 images ({error})", where=str(path), remedy="fetch the file again") from None
    return pixels, torch.tensor(labels)


def _mnist_file(root: Path, stem: str) -> Path:
    for name in (f"{stem}.gz", stem):
        if (root / "mnist" / name).is_file():
            return root / "mnist" / name
    raise DataError(f"no mnist/{stem} (.gz)", where=str(root), remedy="put MNIST's four idx files into its folder mnist")


def _cifar10_file(root: Path) -> Path:
    found = sorted((root / "cifar10").glob("*.zip"))
    if not found:
        raise DataError(
            "no cifar10/*.zip", where=str(root), remedy="put a zip with train/CLASS/*.jpg and test/CLASS/*.jpg there"
        )
    return found[0]


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
