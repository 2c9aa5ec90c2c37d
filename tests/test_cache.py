"""What one job leaves for the next, and what is not trusted."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from edgeflow_mpi import cache as cache_module
from edgeflow_mpi.cache import Cache, code_version
from edgeflow_mpi.progress import NoProgress

KEY = ("model", 3, 1.5)
TEXT = "# a comment\nrows 1:2\n"


class Heard(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", Heard())


def lines(cache: Cache) -> list[str]:
    assert isinstance(cache.progress, Heard)
    return cache.progress.lines


def entry(cache: Cache) -> Path:
    place = cache.place("plan", KEY, ".txt")
    assert place is not None
    return place


def keep(cache: Cache, text: str = TEXT) -> Path:
    cache.keep_text("plan", KEY, ".txt", text)
    return entry(cache)


def read(cache: Cache, key: object = KEY) -> str | None:
    return cache.read_text("plan", key, ".txt")


@pytest.mark.parametrize("text", [TEXT, "", "no newline", "é\n"], ids=repr)
def test_what_was_kept_is_found(cache: Cache, text: str) -> None:
    assert read(cache) is None
    keep(cache, text)
    assert read(cache) == text
    assert read(cache, ("model", 3, 1.25)) is None
    assert lines(cache) == []


def test_entries_are_private(cache: Cache) -> None:
    assert keep(cache).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="cut-short"),
        pytest.param(lambda data: data.replace(b"1:2", b"1:3"), id="changed"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"\xff\xfe" + data, id="no-text"),
        pytest.param(lambda data: TEXT.encode(), id="foreign"),
    ],
)
def test_a_damaged_entry_is_ignored_with_one_line(cache: Cache, damage: object) -> None:
    place = keep(cache)
    assert callable(damage)
    place.write_bytes(damage(place.read_bytes()))
    assert read(cache) is None
    assert lines(cache) == [f"  cache: {place} ignored: it is damaged, or of something else"]
    keep(cache)
    assert read(cache) == TEXT


def test_an_entry_of_another_key_under_this_name_is_ignored(cache: Cache) -> None:
    place = keep(cache)
    cache.keep_text("plan", "other", ".txt", TEXT)
    other = cache.place("plan", "other", ".txt")
    assert other is not None
    other.replace(place)
    assert read(cache) is None
    assert "of something else" in lines(cache)[0]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666], ids=oct)
def test_what_others_may_write_is_not_trusted(cache: Cache, mode: int) -> None:
    place = keep(cache)
    place.chmod(mode)
    assert read(cache) is None
    assert lines(cache) == [f"  cache: {place} ignored: others may have written it"]


def test_what_somebody_else_wrote_is_not_trusted(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = keep(cache)
    owner = place.stat().st_uid
    if owner == 0:
        os.chown(place, 4711, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert read(cache) is None
    assert "others may have written it" in lines(cache)[0]


def test_a_folder_in_the_place_of_an_entry_is_said(cache: Cache) -> None:
    entry(cache).mkdir(parents=True)
    assert read(cache) is None
    assert "it is no file" in lines(cache)[0]
    keep(cache)
    assert "cannot be written" in lines(cache)[1]


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file", Heard())
    keep(cache)
    assert read(cache) is None
    assert any("cannot be written" in line for line in lines(cache))


def test_without_a_folder_nothing_happens() -> None:
    cache = Cache(None, Heard())
    cache.keep_text("plan", KEY, ".txt", TEXT)
    assert (read(cache), lines(cache)) == (None, [])


def _keep_and_read(folder: Path, number: int) -> None:
    cache = Cache(folder, NoProgress())
    texts = {f"{i}" * 200_000 for i in range(4)}
    for _ in range(20):
        cache.keep_text("plan", KEY, ".txt", f"{number}" * 200_000)
        assert cache.read_text("plan", KEY, ".txt") in texts


def test_jobs_at_once_see_whole_entries_only(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_keep_and_read, args=(tmp_path, i)) for i in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert len(list((tmp_path / "plan").iterdir())) == 1


def test_code_has_a_version_of_its_own() -> None:
    assert code_version("graph") == code_version("graph") != code_version("graph", "spans")


DATA = (memoryview(b"some bytes"), memoryview(b""), memoryview(bytes(range(200))))


def test_memory_that_was_kept_is_found(cache: Cache) -> None:
    assert cache.read_data("capture", KEY) is None
    cache.keep_data("capture", KEY, "about", DATA)
    found = cache.read_data("capture", KEY)
    assert found == ("about", DATA)
    assert cache.read_data("capture", "other") is None
    assert lines(cache) == []


def test_a_cache_that_cannot_be_written_is_read(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.keep_data("capture", KEY, "about", DATA)

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.read_data("capture", KEY) == ("about", DATA)
    assert lines(cache) == []


def test_whoever_writes_to_kept_memory_changes_a_copy(cache: Cache) -> None:
    cache.keep_data("capture", KEY, "about", DATA)
    found = cache.read_data("capture", KEY)
    assert found is not None
    found[1][0][:4] = b"none"
    assert cache.read_data("capture", KEY) == ("about", DATA)


def test_entries_used_least_recently_make_room(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_KIND_BYTES", 2000)
    for number in range(4):
        cache.keep_data("capture", number, "about", [memoryview(bytes(400))])
        place = cache.place("capture", number, ".data")
        assert place is not None
        os.utime(place, (number, number))
        if number == 2:
            assert cache.read_data("capture", 0) is not None
    assert [cache.read_data("capture", n) is not None for n in range(4)] == [
        True,
        False,
        True,
        True,
    ]
    cache.keep_data("capture", "large", "about", [memoryview(bytes(4000))])
    assert cache.read_data("capture", "large") is None
