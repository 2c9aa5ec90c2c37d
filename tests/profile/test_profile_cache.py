"""The cache's places and files, and what a host says about itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgeflow_mpi.cache import cache_path, default_cache_dir, private_folder, write_atomic
from edgeflow_mpi.cluster.devices import cpu_model, host_memory_bytes, name_devices
from edgeflow_mpi.cluster.profile import Device


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/edgeflow_mpi"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/edgeflow_mpi"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/edgeflow_mpi"),
    ],
    ids=["xdg", "relative-xdg", "home"],
)
def test_the_default_folder_follows_the_environment(
    environment: dict[str, str], expected: str
) -> None:
    assert default_cache_dir(environment) == Path(expected)


def test_without_any_home_the_folder_is_still_absolute() -> None:
    assert default_cache_dir({}).is_absolute()


def test_different_keys_have_different_places() -> None:
    keys = [("a", 1), ("a", 2), ("b", 1), "a", None]
    places = {cache_path(Path("/c"), "profile", key, ".yaml") for key in keys}
    assert len(places) == len(keys)
    assert all(place.parent == Path("/c/profile") and place.suffix == ".yaml" for place in places)
    assert cache_path(Path("/c"), "profile", keys[0]) == cache_path(Path("/c"), "profile", ("a", 1))


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "entry"
    write_atomic(path, "a long first content")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    with pytest.raises(OSError, match="entry"):
        write_atomic(tmp_path / "entry", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "entry"]


def test_writers_at_once_leave_the_content_of_one_of_them(tmp_path: Path) -> None:
    contents = [str(i) * 100_000 for i in range(8)]
    writers = [
        threading.Thread(target=write_atomic, args=(tmp_path / "e", content))
        for content in contents
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=20)
    assert (tmp_path / "e").read_text() in contents


def test_devices_are_named_by_host_and_share_its_memory() -> None:
    found = [Device(host, 1, 900, host=host) for host in ("desk", "pi", "desk", "desk")]
    named = name_devices(found)
    assert [device.name for device in named] == ["desk/0", "pi", "desk/1", "desk/2"]
    assert [device.memory_bytes for device in named] == [300, 900, 300, 300]


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/jobs/a\n", "sys/fs/cgroup/jobs/a/memory.max": "4096"}, 4096),
        (
            {
                "proc/self/cgroup": "0::/jobs/a\n",
                "sys/fs/cgroup/jobs/memory.max": "2048\n",
                "sys/fs/cgroup/jobs/a/memory.max": "max\n",
            },
            2048,
        ),
        ({"proc/self/cgroup": "0::/of/the/host\n", "sys/fs/cgroup/memory.max": "1024"}, 1024),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/jobs\n0::/\n",
                "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": "512\n",
            },
            512,
        ),
    ],
    ids=["v2", "v2-parent", "v2-container", "v1"],
)
def test_a_container_limits_the_memory(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_memory_bytes(tmp_path) == limit


def test_without_a_limit_all_memory_counts(tmp_path: Path) -> None:
    assert host_memory_bytes(tmp_path) >= host_memory_bytes() > 10**8


def test_the_processor_is_named(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nBogoMIPS : 1\n\nHardware : BCM2835\nModel : Pi 3 B+\n")
    assert cpu_model(info) == "Pi 3 B+"
    assert cpu_model(tmp_path / "absent")


def test_machine_code_is_kept_by_its_sources_where_nobody_else_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "source.py"
    source.write_text("one")
    folder = private_folder("code", [source])
    assert folder is not None
    assert folder == private_folder("code", [source])
    assert folder.stat().st_mode & 0o077 == 0
    source.write_text("two")
    assert private_folder("code", [source]) != folder
    source.write_text("one")
    folder.chmod(0o777)
    assert private_folder("code", [source]) is None
    assert private_folder("code", [tmp_path / "absent.py"]) is None
