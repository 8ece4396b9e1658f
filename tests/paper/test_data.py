"""idx files and zips of images are read correctly, and damaged ones are refused by name."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from alloralib.errors import AlloraError, DataError
from paper.data import CIFAR10_CLASSES, StudyData, read_idx

from ..places import data_dir


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("shape", [(3,), (2, 28, 28), (0,), (1, 1)])
@pytest.mark.parametrize("zipped", [True, False])
def test_idx_round_trip(tmp_path, shape, zipped) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape)
    path = tmp_path / ("file.gz" if zipped else "file")
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("content", [
    b"", b"\0\0", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"PNG.....", b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",
    idx(np.zeros((5,), np.uint8))[:-1], idx(np.zeros((5,), np.uint8)) + b"\0",
])  # fmt: skip
def test_damaged_idx(tmp_path, content) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match="labels"):
        read_idx(path)


def test_damaged_gzip(tmp_path) -> None:
    path = tmp_path / "labels.gz"
    for content in (b"not gzip", gzip.compress(idx(np.zeros((50,), np.uint8)))[:-9]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"labels\.gz"):
            read_idx(path)


def cifar(path, per_class=2, size=(32, 32), skip=()) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for label, name in enumerate(CIFAR10_CLASSES):
            for i in range(per_class):
                if (name, i) in skip:
                    continue
                buffer = io.BytesIO()
                Image.new("RGB", size, (label * 20, i, 0)).save(buffer, format="PNG")
                archive.writestr(f"train/{name}/{i:04}.png", buffer.getvalue())


def test_cifar(tmp_path) -> None:
    (tmp_path / "cifar10").mkdir()
    cifar(tmp_path / "cifar10" / "a.zip")
    x, y = StudyData(tmp_path).cifar10("train", 2)
    assert x.shape == (20, 3072)
    assert y.tolist() == [label for label in range(10) for _ in range(2)]
    assert x[2, 0] == pytest.approx(20 / 127.5 - 1)


def test_damaged_cifar(tmp_path) -> None:
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(DataError, match="cifar10"):
        StudyData(tmp_path).hashes(("cifar10",))
    path = tmp_path / "cifar10" / "b.zip"
    cifar(path, skip={("frog", 1)})
    with pytest.raises(DataError, match="1 images of train/frog"):
        StudyData(tmp_path).cifar10("train", 2)
    path.rename(tmp_path / "cifar10" / "c.zip")
    (tmp_path / "cifar10" / "c.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"c\.zip"):
        StudyData(tmp_path).cifar10("train", 2)


def test_no_directory(tmp_path) -> None:
    with pytest.raises(AlloraError, match="--data-dir"):
        StudyData(None).mnist("train")
    with pytest.raises(AlloraError, match="no such directory"):
        StudyData(tmp_path / "nowhere").hashes(("mnist",))


def test_the_real_ones() -> None:
    data = StudyData(data_dir())
    x, y = data.mnist("test")
    assert x.shape == (10000, 784)
    assert torch.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    x, y = data.mnist("train")
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
    x, y = data.cifar10("test", 3)
    assert x.shape == (30, 3072)
    assert -1 <= float(x.min()) < float(x.max()) <= 1
