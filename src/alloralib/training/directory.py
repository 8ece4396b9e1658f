"""The directory of a run: `NAME.unfinished` while the run goes on, `NAME` once it is complete.

Nothing appears under the final name before the run is complete, and a run that it replaces is deleted only then. What is in
`NAME.unfinished` (`run.yaml` and `checkpoints/`) is enough to resume the run, wherever its process was stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import ConfigError
from ..records import RECORD_FILE
from .checkpoints import steps_of

SETTINGS_FILE = "run.yaml"
_LOCK_FILE = ".lock"
_FILES_OF_A_RUN = (RECORD_FILE, "adapter_config.json")


class RunDirectory:
    """The two directories of a run.

    Attributes:
        final: the directory that was asked for.
        working: where everything is written until the run is complete.
        checkpoints: inside `working`.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.final = Path(directory)
        self.working = self.final.with_name(self.final.name + ".unfinished")
        self._replaced = self.final.with_name(self.final.name + ".replaced")
        self.checkpoints = self.working / "checkpoints"

    @property
    def is_complete(self) -> bool:
        """Whether the working directory holds a complete run that only has to be moved into place."""
        return (self.working / RECORD_FILE).is_file()

    def check_free(self, overwrite: bool) -> None:
        """Check that a new run destroys nothing.

        Raises:
            ConfigError: the directory holds a run, or an unfinished one, and `overwrite` is False; or other files.
        """
        where, other = str(self.final), "give another --output-dir"
        if self.final.is_file():
            raise ConfigError("a file, not a directory", where=where, remedy=other)
        if self.final.is_dir() and any(self.final.iterdir()):
            if not any((self.final / name).is_file() for name in _FILES_OF_A_RUN):
                raise ConfigError("holds files that are not a run", where=where, remedy=f"{other}, or empty this one")
            if not overwrite:
                raise ConfigError("holds a run already", where=where, remedy=f"{other}, or --overwrite to replace it")
        if overwrite:
            return
        where, steps = str(self.working), steps_of(self.checkpoints)
        if self.is_complete:
            remedy = "use --resume to move it, or --overwrite to delete it"
            raise ConfigError("holds a complete run that was not moved into place yet", where=where, remedy=remedy)
        if steps:
            remedy = "use --resume to continue it, or --overwrite to delete it"
            raise ConfigError(f"holds an unfinished run, with a checkpoint at step {steps[-1]}", where=where, remedy=remedy)

    def check_resumable(self) -> None:
        """Check that there is a run to resume.

        Raises:
            ConfigError: there is none.
        """
        if (self.working / SETTINGS_FILE).is_file() or self.is_complete:
            return
        if (self.final / RECORD_FILE).is_file():
            raise ConfigError("the run there is finished", where=str(self.final), remedy="leave out --resume")
        remedy = "leave out --resume to start one, or give the --output-dir of the run that was stopped"
        raise ConfigError(f"there is no unfinished run at {self.working}", where=str(self.final), remedy=remedy)

    def settings(self) -> str:
        """The settings of the unfinished run, as YAML."""
        return (self.working / SETTINGS_FILE).read_text(encoding="utf-8")

    @contextmanager
    def open(self, settings: str, *, resume: bool) -> Iterator[None]:
        """Create the working directory and lock it for this process within a `with` block.

        If the block is left before `publish`, the directory is kept if it holds a checkpoint, and deleted otherwise.

        Args:
            settings: YAML, kept for `--resume`.
            resume: continue with what is there; else it is deleted first.

        Raises:
            ConfigError: another process has locked it, or it cannot be created.
        """
        try:
            self.working.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"cannot be created: {error.strerror}"
            raise ConfigError(what, where=str(self.working), remedy="give another --output-dir") from None
        lock = _lock(self.working)
        try:
            if not resume:
                for path in self.working.iterdir():
                    if path.name != _LOCK_FILE:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                (self.working / SETTINGS_FILE).write_text(settings, encoding="utf-8")
            yield
        finally:
            if self.working.is_dir() and not self.is_complete and not steps_of(self.checkpoints):
                shutil.rmtree(self.working, ignore_errors=True)
            lock.close()

    def publish(self) -> None:
        """Move the complete run into place. If the process is stopped at any point, the next `--resume` does the rest."""
        for name in (self.checkpoints.name, SETTINGS_FILE, _LOCK_FILE):
            path = self.working / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if self.final.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.final.rename(self._replaced)
        self.working.rename(self.final)
        shutil.rmtree(self._replaced, ignore_errors=True)


def _lock(directory: Path) -> IO[str]:
    """A locked file; the operating system releases the lock when the process ends, however it ends."""
    file = (directory / _LOCK_FILE).open("w")
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        remedy = "wait for it, or give another --output-dir"
        raise ConfigError("another process is writing this run", where=str(directory), remedy=remedy) from None
    return file
