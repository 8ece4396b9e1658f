"""The output directory: refused where it holds something, filled beside its place, and moved there in one step."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ..errors import ConfigError
from ..records import RECORD_FILE

_A_RUN = (RECORD_FILE, "adapter_config.json")


class Output:
    """Where a run writes. Nothing appears under the final name before the run is complete.

    Attributes:
        final: the directory that was asked for.
        staging: where to write, inside the `with` block.

    Raises:
        ConfigError: the directory holds a run and `overwrite` is False, or holds something else.
    """

    def __init__(self, directory: str, overwrite: bool) -> None:
        self.final = Path(directory)
        if self.final.is_file():
            raise ConfigError("a file, not a directory", where=directory, remedy="give another --output-dir")
        if self.final.is_dir() and any(self.final.iterdir()):
            if not any((self.final / name).is_file() for name in _A_RUN):
                raise ConfigError(
                    "holds files that are not a run", where=directory, remedy="give another --output-dir, or empty this one"
                )
            if not overwrite:
                raise ConfigError(
                    "holds a run already", where=directory, remedy="give another --output-dir, or --overwrite to replace it"
                )
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot be made: {error.strerror}", where=str(self.final.parent), remedy="give another --output-dir"
            ) from None

    def __enter__(self) -> Output:
        self.staging = Path(tempfile.mkdtemp(prefix=f".{self.final.name}.partial-", dir=self.final.parent))
        self.staging.chmod(0o755)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def publish(self) -> None:
        """Put the finished directory in place; a run that was there goes only now."""
        replaced = self.staging.with_name(self.staging.name.replace(".partial-", ".replaced-"))
        if self.final.exists():
            self.final.rename(replaced)
        self.staging.rename(self.final)
        shutil.rmtree(replaced, ignore_errors=True)
