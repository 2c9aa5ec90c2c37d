"""What a person says of figures, for the page that shows them."""

from __future__ import annotations

from pathlib import Path

from edgeflow_mpi.errors import InputError


def read_notes(path: Path | None) -> str:
    """The text of a file; nothing where none is named.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    try:
        return "" if path is None else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the notes {path} cannot be read: {error}") from None
