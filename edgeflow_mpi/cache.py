"""Results that are expensive to make and safe to lose, kept between jobs.

An entry is one file. It is written beside its place and moved into it, so that two jobs at
once, or a job that is killed, never leave half an entry; whoever reads one must take what
does not parse for absent. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_CACHE_HOME/edgeflow_mpi``, or ``~/.cache/edgeflow_mpi``.

    A relative ``XDG_CACHE_HOME`` is ignored, as its specification asks.

    References
    ----------
    .. [1] XDG Base Directory Specification, version 0.8.
    """
    configured = environment.get("XDG_CACHE_HOME", "")
    if configured and Path(configured).is_absolute():
        return Path(configured) / "edgeflow_mpi"
    home = environment.get("HOME", "")
    if home and Path(home).is_absolute():
        return Path(home) / ".cache" / "edgeflow_mpi"
    return Path(tempfile.gettempdir()) / f"edgeflow_mpi-{os.getuid()}"


def private_folder(kind: str, sources: Iterable[Path]) -> Path | None:
    """A folder for machine code made from exactly these source files; None if there is none.

    What lies there is run, so it is made for this user alone, and one that belongs to anybody
    else or that others may write to is not used. Neither is one that cannot be written to.
    """
    try:
        digest = hashlib.sha256()
        for path in sorted(sources):
            digest.update(path.read_bytes())
        folder = default_cache_dir() / kind / digest.hexdigest()[:20]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
            return None
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def cache_path(cache_dir: Path, kind: str, key: object, suffix: str = "") -> Path:
    """Where the entry of ``kind`` for ``key`` is, or would be.

    Parameters
    ----------
    cache_dir
        The cache's folder; it need not exist.
    kind
        What is kept, such as ``profile``: a folder name.
    key
        Everything the result depends on. Its ``repr`` must tell different keys apart and
        be the same in every process (so no sets, and no objects shown by address).
    suffix
        Of the file name, such as ``.yaml``.
    """
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:20]
    return cache_dir / kind / f"{digest}{suffix}"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Make ``path`` hold ``content``, entirely or not at all; folders are made as needed.

    Raises
    ------
    OSError
        When it cannot be written; what was there before is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        # mkstemp makes private files; give this one what any new file would get.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
