"""Images of a table: located, checked, and turned into pixels when they are asked for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from ..files import sha256_of_bytes
from .table import Table

Source = dict[str, Any]  # {"bytes": encoded image or None, "path": file or None}, as `datasets` stores images


def image_sources(table: Table, column: str) -> list[Source]:
    """The image of every row, not yet decoded.

    A cell is a path (relative to the directory that was given, or to that of the file) or an encoded image, as in Parquet
    files and on the hub.

    Raises:
        DataError: no such column, an empty cell, or a path without a file.
    """
    base = Path(table.source) if Path(table.source).is_dir() else Path(table.source).parent
    sources: list[Source] = []
    for row, cell in enumerate(table.column(column, "image-column")):
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(content, bytes):
            sources.append({"bytes": content, "path": None})
            continue
        name = cell.get("path") if isinstance(cell, dict) else cell
        if not isinstance(name, str) or not name:
            what = f"column {column!r} has no image but {str(cell)[:60]!r}"
            remedy = "give a path or an encoded image, or name another --image-column"
            raise DataError(what, where=table.where(row), remedy=remedy)
        path = base / name
        if not path.is_file():
            remedy = f"paths are relative to {base}"
            raise DataError(f"no such image file: {path}", where=table.where(row), remedy=remedy)
        sources.append({"bytes": None, "path": str(path)})
    return sources


def content_key(source: Source) -> str:
    """The SHA-256 of an encoded image: equal for copies of a file, whatever their names."""
    return sha256_of_bytes(_encoded(source))


def open_image(source: Source) -> Image.Image:
    """The image in RGB; transparency is dropped, gray becomes three equal channels."""
    with Image.open(io.BytesIO(_encoded(source))) as image:
        return image.convert("RGB")


def image_size(source: Source) -> tuple[int, int]:
    """Width and height of an image, from its header."""
    with Image.open(io.BytesIO(_encoded(source))) as image:
        return image.size


def check_images(table: Table, sources: list[Source]) -> None:
    """Decode every image once, so that none fails in the middle of a run.

    Raises:
        DataError: a file that is not an image, or is truncated.
    """
    for row, source in enumerate(sources):
        try:
            open_image(source)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises all of them
            what = f"not an image: {source['path'] or 'encoded bytes'} ({str(error).splitlines()[0][:80]})"
            raise DataError(what, where=table.where(row), remedy="open it in a viewer; replace or remove it") from None


class Pixels:
    """A transform for `datasets`: replaces the sources of a batch by pixel values.

    Args:
        processor: transformers' image processor. It is deterministic; there is no augmentation.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        """The columns of some rows, with `pixel_values` as tensors, (3, H, W) float32 each."""
        if "pixel_values" not in batch:
            return batch
        images = [open_image(source) for source in batch["pixel_values"]]
        return batch | {"pixel_values": list(self.processor(images=images, return_tensors="pt")["pixel_values"])}


def _encoded(source: Source) -> bytes:
    return source["bytes"] if source["bytes"] is not None else Path(source["path"]).read_bytes()
