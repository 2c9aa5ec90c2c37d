"""Where a job's profile comes from: a file, the cache, or measuring."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from profile_cases import on_ranks, relu_graph

from edgeflow_mpi.cache import Cache
from edgeflow_mpi.cluster import profiling
from edgeflow_mpi.cluster.comm import PointToPoint
from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.cluster.profiling import profile_for
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec
from edgeflow_mpi.progress import NoProgress

GRAPH = relu_graph()


class _Heard(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def obtain(cache: Path | None, ranks: int = 2, **options: object) -> tuple[Profile, list[str]]:
    """The profile that rank 0 gets, and what was said; other ranks must get none."""
    heard = _Heard()

    def work(comm: PointToPoint) -> Profile | None:
        progress = NoProgress() if comm.Get_rank() else heard
        return profile_for(
            comm,
            GRAPH,
            Needs(GRAPH),
            cache=Cache(cache, progress),
            progress=progress,
            **options,  # type: ignore[arg-type]
        )

    first, *others = on_ranks(ranks, work)
    if isinstance(first, ProfileError):
        assert [str(other) for other in others] == [str(first)] * len(others)
        raise first
    assert isinstance(first, Profile) and others == [None] * len(others)
    return first, heard.lines


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("measure_compute", "measure_links"):
        measure = getattr(profiling, name)
        monkeypatch.setattr(
            profiling, name, lambda *a, _measure=measure, **k: _measure(*a, **k, budget_s=0.01)
        )


def test_a_second_job_gets_the_same_profile_without_measuring(tmp_path: Path) -> None:
    first, lines = obtain(tmp_path)
    assert any("2 layer shapes measured on 2 devices" in line for line in lines)
    assert any("2 links measured" in line for line in lines)
    second, lines = obtain(tmp_path)
    assert [line for line in lines if "measured" in line] == []
    assert "reused (--remeasure measures again)" in lines[0]
    assert (second.costs, second.links) == (first.costs, first.links)
    assert (second.created, second.versions) == (first.created, first.versions)
    assert [device.name for device in second.devices] == [device.name for device in first.devices]


def test_another_number_of_ranks_is_measured_anew(tmp_path: Path) -> None:
    obtain(tmp_path)
    assert any("measured" in line for line in obtain(tmp_path, ranks=1)[1])
    assert len(list((tmp_path / "profile").iterdir())) == 2


def test_measuring_again_can_be_asked_for(tmp_path: Path) -> None:
    obtain(tmp_path)
    assert any("measured" in line for line in obtain(tmp_path, remeasure=True)[1])


def test_a_spoiled_cache_entry_is_made_again(tmp_path: Path) -> None:
    obtain(tmp_path)
    (entry,) = (tmp_path / "profile").iterdir()
    entry.write_text(entry.read_text()[:-20])
    lines = obtain(tmp_path)[1]
    assert [line for line in lines if "ignored" in line] == [
        f"  cache: {entry} ignored: it is damaged, or of something else"
    ]
    assert any("measured" in line for line in lines)
    assert "reused" in obtain(tmp_path)[1][0]


def test_a_sealed_entry_that_is_no_profile_of_the_model_is_made_again(tmp_path: Path) -> None:
    obtain(tmp_path)
    (entry,) = (tmp_path / "profile").iterdir()
    _, _, text = entry.read_text().partition("\n")
    text = text.replace(GRAPH.fingerprint, "0" * 12)
    head = entry.read_text().split()[:-1]
    digest = hashlib.sha256(text.encode()).hexdigest()
    entry.write_text(f"{' '.join([*head[: head.index('delete:') + 2], digest])}\n{text}")
    lines = obtain(tmp_path)[1]
    assert any("ignored" in line and "another" in line for line in lines), lines
    assert any("measured" in line for line in lines)


def test_nothing_is_kept_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert any("measured" in line for line in obtain(None)[1])
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, lines = obtain(tmp_path / "file")
    assert any("cannot be written" in line for line in lines)


def test_a_saved_profile_is_used_by_a_later_job(tmp_path: Path) -> None:
    saved = tmp_path / "p.yaml"
    first, _ = obtain(tmp_path / "a", save_path=saved)
    second, lines = obtain(tmp_path / "b", profile_path=saved)
    assert (second.costs, second.links, lines) == (first.costs, first.links, [])
    assert not (tmp_path / "b").exists()


def test_a_bad_file_fails_all_ranks_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="there is no profile"):
        obtain(tmp_path, profile_path=tmp_path / "absent.yaml")
    (tmp_path / "p.yaml").write_text("format: 1\n")
    with pytest.raises(ProfileError, match="lacks the key 'model'"):
        obtain(tmp_path, profile_path=tmp_path / "p.yaml")


def test_a_profile_that_cannot_be_saved_fails_all_ranks(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be written"):
        obtain(tmp_path, save_path=tmp_path)


def test_a_model_without_computation_has_a_profile_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TensorSpec((1, 3), "float32", None)
    layers = (
        Layer("x", "input", (), (), spec, 1, False),
        Layer("y", "output", ("x",), (), spec, 1, False),
    )
    monkeypatch.setitem(globals(), "GRAPH", Graph("nothing", layers, (), ("y",)))
    measured, _ = obtain(tmp_path)
    assert measured.costs == ({}, {}) and len(measured.links) == 2
    assert obtain(tmp_path)[0].costs == measured.costs
