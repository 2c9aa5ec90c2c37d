"""Result files: checked before the run, and never half written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from edgeflow_mpi.errors import InputError


def require_writable(path: Path, what: str) -> None:
    """Find out before a long run whether ``path`` can be written after it.

    Parameters
    ----------
    path : Path
        Where a result will go; nothing is written now.
    what : str
        What it is, for the message, such as ``"the report"``.

    Raises
    ------
    InputError
        If it is a folder, its folder is missing, or either cannot be written.
    """
    reason = None
    try:
        target = _target(path)
        if target.is_dir():
            reason = "it is a folder"
        elif not target.parent.is_dir():
            reason = f"there is no folder {target.parent}"
        elif not os.access(target if target.exists() else target.parent, os.W_OK):
            reason = "permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is not None:
        raise _refused(path, what, reason)


def write_file(path: Path, what: str, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that readers see the old one or the whole new one, nothing between.

    Something that is no regular file, such as ``/dev/stdout``, is written to directly.

    Parameters
    ----------
    path : Path
        Where to.
    what : str
        What it is, for the message, such as ``"the report"``.
    write : callable
        Given the open file.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    require_writable(path, what)
    target = _target(path)
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                write(file)
            return
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                write(file)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, what, error.strerror or str(error)) from error


def _target(path: Path) -> Path:
    """What a link points to, so that the link stays one; a device as it is named."""
    return path.resolve() if path.is_symlink() and path.is_file() else path


def _refused(path: Path, what: str, reason: str) -> InputError:
    return InputError(f"{what} cannot be written to {path}: {reason}.")
