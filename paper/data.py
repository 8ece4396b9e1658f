"""The data sets of the studies: MNIST from idx files, CIFAR-10 from a zip of images, and those registered in the library."""

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

from alloralib.data.registry import REGISTRY
from alloralib.errors import ConfigError, DataError
from alloralib.files import sha256

MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class StudyData:
    """The directory of data sets that a study is given.

    Args:
        directory: holds the folders `mnist`, `cifar10` and those of registered sets; None if no directory was given.
    """

    directory: Path | None

    def hashes(self, needs: tuple[str, ...]) -> dict[str, str]:
        """The SHA-256 of each data set: of its files' names and contents.

        Raises:
            AlloraError: no directory was given, or a data set is not in it.
        """
        return {name: _digest(self._files(name)) for name in needs}

    @property
    def registered(self) -> str | None:
        """The `data_dir` for `alloralib.data.parts.load_parts`; None means the Hugging Face hub."""
        return None if self.directory is None else str(self.root)

    @cached_property
    def root(self) -> Path:
        """The directory.

        Raises:
            ConfigError: no directory was given, or it does not exist.
        """
        remedy = "give --data-dir, a directory with folders such as mnist and cifar10"
        if self.directory is None:
            raise ConfigError("this study needs data, and no data directory was given", remedy=remedy)
        if not self.directory.is_dir():
            raise ConfigError("no such directory", where=str(self.directory), remedy=remedy)
        return self.directory

    def mnist(self, part: str) -> tuple[Tensor, Tensor]:
        """MNIST's train or test part.

        Returns:
            images (N, 784) float32, standardized with the training set's mean .1307 and standard deviation .3081;
            labels (N,) int64.
        """
        return _mnist(*(_mnist_file(self.root, stem) for stem in MNIST_FILES[part]))

    def cifar10(self, part: str, per_class: int) -> tuple[Tensor, Tensor]:
        """The first `per_class` images, by file name, of each class of CIFAR-10's train or test part.

        Returns:
            images (N, 3072) float32 in [-1, 1]; labels (N,) int64.
        """
        return _cifar10(_cifar10_file(self.root), part, per_class)

    def _files(self, name: str) -> list[Path]:
        if name == "mnist":
            return [_mnist_file(self.root, stem) for stems in MNIST_FILES.values() for stem in stems]
        if name == "cifar10":
            return [_cifar10_file(self.root)]
        folders = REGISTRY[name].folders if name in REGISTRY else (name,)  # where the library's reader looks
        there = [self.root / folder for folder in folders if (self.root / folder).is_dir()]
        if not there:
            raise DataError(f"no folder {name}", where=str(self.root), remedy="`allora tasks` describes the data set")
        return sorted(path for folder in there for path in folder.iterdir() if path.is_file())


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes, gzipped or not.

    Raises:
        DataError: the file has another format, or is truncated.
    """
    remedy = "download the file again; the format is described at http://yann.lecun.com/exdb/mnist"
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
        raise DataError(f"holds {values.size} bytes, but its header announces {shape}", where=str(path), remedy=remedy)
    return values.reshape(shape)


@lru_cache(maxsize=2)
def _mnist(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    x, y = read_idx(images), read_idx(labels)
    if x.shape[1:] != (28, 28) or y.shape != x.shape[:1]:
        raise DataError(
            f"images of shape {x.shape} and labels of shape {y.shape}", where=str(images), remedy="use MNIST's own files"
        )
    pixels = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32)) / 255
    return (pixels - 0.1307) / 0.3081, torch.from_numpy(y.astype(np.int64))


@lru_cache(maxsize=2)
def _cifar10(path: Path, part: str, per_class: int) -> tuple[Tensor, Tensor]:
    from PIL import Image

    remedy = "download the file again"
    images, labels = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            for label, name in enumerate(CIFAR10_CLASSES):
                found = [n for n in names if n.startswith(f"{part}/{name}/") and not n.endswith("/")][:per_class]
                if len(found) < per_class:
                    raise DataError(
                        f"{len(found)} images of {part}/{name}, but {per_class} are needed", where=str(path), remedy=remedy
                    )
                for n in found:
                    with Image.open(io.BytesIO(archive.read(n))) as image:
                        images.append(np.asarray(image.convert("RGB"), dtype=np.float32).reshape(-1))
                    labels.append(label)
        pixels = torch.from_numpy(np.stack(images)) / 127.5 - 1
    except DataError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"not a zip of 32 x 32 images ({error})", where=str(path), remedy=remedy) from None
    return pixels, torch.tensor(labels)


def _mnist_file(root: Path, stem: str) -> Path:
    for name in (f"{stem}.gz", stem):
        if (root / "mnist" / name).is_file():
            return root / "mnist" / name
    raise DataError(f"no mnist/{stem} (.gz)", where=str(root), remedy="put MNIST's four idx files into the folder mnist")


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
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(sha256(path)))
    return digest.hexdigest()
