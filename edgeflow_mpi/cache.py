"""Results that are expensive to make and safe to lose, kept between jobs.

An entry is one file. It is written beside its place and moved into it, so that two jobs at
once, or a job that is killed, never leave half an entry; whoever reads one must take what
does not parse for absent. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgeflow_mpi.progress import Progress

_ALIGNMENT_BYTES = 64
_KIND_BYTES = 2 << 30
"""What entries of one kind may take together before the oldest go."""


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


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A file to write that becomes ``path``, entirely, or not at all if the body fails.

    Folders are made as needed. A ``private`` file is for nobody but its owner.

    Raises
    ------
    OSError
        When it cannot be written; what was there before is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        if not private:
            # mkstemp makes private files; give this one what any new file would get.
            umask = os.umask(0)
            os.umask(umask)
            part.chmod(0o666 & ~umask)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Make ``path`` hold ``content``, entirely or not at all, as in :func:`replacing`."""
    with replacing(path, private=private) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def code_version(*stages: str) -> str:
    """A digest of the sources of these stages of the package (folders or modules).

    What they compute is kept under it: between two releases the version stays the same and
    the code does not.
    """
    package, digest = Path(__file__).parent, hashlib.sha256()
    for stage in stages:
        place = package / stage
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


@dataclass(frozen=True)
class Cache:
    """What earlier jobs of this user left for later ones. Every entry is a file of its own.

    Without a ``folder`` nothing is read and nothing kept. An entry is used only if it is the
    user's own (or root's), nobody else may write it, and it is whole and of this very key: any
    other is ignored with a line to ``progress``. ``used`` collects the kinds that were found.
    """

    folder: Path | None
    progress: Progress
    used: list[str] = field(default_factory=list)

    def place(self, kind: str, key: object, suffix: str) -> Path | None:
        """Where the entry is or would be, as for :func:`cache_path`."""
        return None if self.folder is None else cache_path(self.folder, kind, key, suffix)

    def mine(self, place: Path) -> bool:
        """Whether there is an entry that nobody else can have written."""
        try:
            found = place.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            self.ignore(place, error.strerror or "it cannot be read")
            return False
        if not stat.S_ISREG(found.st_mode):
            self.ignore(place, "it is no file")
        elif found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
            self.ignore(place, "others may have written it")
        else:
            return True
        return False

    def ignore(self, place: Path, reason: str) -> None:
        """Say that an entry is there and cannot be used."""
        self.progress.say(f"  cache: {place} ignored: {reason}")

    def keep(self, place: Path, write: Callable[[Path], object]) -> None:
        """Let ``write`` make the file; that it cannot be made is said and no failure.

        Entries of its kind that were used least recently go where all of them take too much.
        """
        try:
            with replacing(place, private=True) as part:
                write(part)
            _make_room(place.parent, _KIND_BYTES)
        except OSError as error:
            self.progress.say(
                f"  cache: {place} cannot be written: {error.strerror or 'unknown reason'}"
            )

    def read_text(self, kind: str, key: object, suffix: str) -> str | None:
        """The text that was kept under this key, or None."""
        place = self.place(kind, key, suffix)
        if place is None or not self.mine(place):
            return None
        try:
            head, _, text = place.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            head = text = ""
        if head != _seal(key, text):
            self.ignore(place, "it is damaged, or of something else")
            return None
        return text

    def keep_text(self, kind: str, key: object, suffix: str, text: str) -> None:
        """Keep a text under this key; it must be of a kind in which ``#`` begins a comment."""
        place = self.place(kind, key, suffix)
        if place is not None:
            content = f"{_seal(key, text)}\n{text}".encode()
            self.keep(place, lambda part: part.write_bytes(content))

    def keep_data(self, kind: str, key: object, text: str, data: Sequence[memoryview]) -> None:
        """Keep one line of text and large pieces of memory, flat bytes, under this key."""
        place = self.place(kind, key, ".data")
        if place is None or sum(map(len, data)) > _KIND_BYTES:
            return
        sums = [(len(piece), zlib.crc32(piece)) for piece in data]
        described = json.dumps({"text": text, "pieces": sums})
        head = f"{_seal(key, described)}\n{described}\n".encode()

        def write(part: Path) -> None:
            with part.open("wb") as file:
                file.write(head)
                for piece in data:
                    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
                    file.write(piece)

        self.keep(place, write)

    def read_data(self, kind: str, key: object) -> tuple[str, tuple[memoryview, ...]] | None:
        """What :meth:`keep_data` kept, or None.

        The pieces are the file's own pages, mapped privately: who writes to them changes
        nothing but this process's copy.
        """
        place = self.place(kind, key, ".data")
        if place is None or not self.mine(place):
            return None
        try:
            with place.open("rb") as file:
                head, described = file.readline().decode(), file.readline().decode()
                if head.rstrip("\n") != _seal(key, described.rstrip("\n")):
                    raise ValueError("another seal")
                at, whole = file.tell(), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            found = json.loads(described)
            pieces = []
            for size, checksum in found["pieces"]:
                at += -at % _ALIGNMENT_BYTES
                pieces.append(memoryview(whole)[at : at + size])
                at += size
                if len(pieces[-1]) != size or zlib.crc32(pieces[-1]) != checksum:
                    raise ValueError("another sum")
        except (OSError, ValueError):
            self.ignore(place, "it is damaged, or of something else")
            return None
        with suppress(OSError):  # one that somebody else keeps for this user
            os.utime(place)  # it was of use
        return found["text"], tuple(pieces)


def _make_room(folder: Path, limit_bytes: int) -> None:
    """Remove the entries used least recently until the others take no more than the limit."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another job makes room, too
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    left = limit_bytes
    for _, size, path in sorted(found, reverse=True):
        left -= size
        if left < 0:
            path.unlink(missing_ok=True)


def _seal(key: object, text: str) -> str:
    """The first line of an entry: for what it is, and a sum of what follows."""
    sums = (hashlib.sha256(part.encode()).hexdigest() for part in (repr(key), text))
    return f"# Kept by edgeflow_mpi, safe to delete: {' '.join(sums)}"
