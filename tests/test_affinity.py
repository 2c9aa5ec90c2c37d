"""Cores and threads of a rank, from made-up hosts and once under a real mpirun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow_mpi.cluster import affinity
from edgeflow_mpi.cluster.affinity import bind_to, decide_affinity, share_of_host, widen_affinity
from edgeflow_mpi.cluster.cpus import (
    find_launcher,
    parse_cpu_list,
    physical_cores,
    read_cpu_quota,
    read_siblings,
)
from edgeflow_mpi.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def plain_cores(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple((cpu,) for cpu in range(count))


HYPERTHREADED = ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("cores", "ranks", "shares"),
    [
        pytest.param(4, 1, [[0, 1, 2, 3]], id="alone"),
        pytest.param(4, 2, [[0, 1], [2, 3]], id="even"),
        pytest.param(7, 3, [[0, 1, 2], [3, 4], [5, 6]], id="remainder-to-the-first"),
        pytest.param(3, 3, [[0], [1], [2]], id="one-each"),
        pytest.param(2, 3, [[0, 1], [0, 1], [0, 1]], id="fewer-cores-than-ranks"),
    ],
)
def test_shares_of_a_host(cores: int, ranks: int, shares: list[list[int]]) -> None:
    host = plain_cores(cores)
    got = [[cpu for (cpu,) in share_of_host(host, rank, ranks)] for rank in range(ranks)]
    assert got == shares


@given(cores=st.integers(1, 40), ranks=st.integers(1, 40))
def test_shares_tile_the_host_or_are_all_of_it(cores: int, ranks: int) -> None:
    host = plain_cores(cores)
    shares = [share_of_host(host, rank, ranks) for rank in range(ranks)]
    if cores < ranks:
        assert shares == [host] * ranks
    else:
        assert sum(shares, start=()) == host
        sizes = [len(share) for share in shares]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("cores", "rank", "ranks"), [(0, 0, 1), (2, 2, 2), (2, -1, 2)], ids=["none", "high", "low"]
)
def test_an_impossible_share_is_refused(cores: int, rank: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=r"a core|local rank"):
        share_of_host(plain_cores(cores), rank, ranks)


def test_hyperthreads_of_a_core_stay_together_and_count_once() -> None:
    second = decide_affinity(HYPERTHREADED, 1, 2)
    assert second.cores == (2, 3, 6, 7)
    assert second.threads == 2
    assert second.host_cores == tuple(range(8))
    assert second.host_threads == 4
    assert not second.shared


def test_ranks_that_share_cores_run_one_thread_each() -> None:
    for rank in range(5):
        mine = decide_affinity(plain_cores(2), rank, 5)
        assert mine.cores == (0, 1)
        assert mine.threads == 1
        assert mine.host_threads == 2
        assert mine.shared
        assert mine.reason == "5 ranks share 2 cores"


@pytest.mark.parametrize(
    ("ranks", "quota", "threads"),
    [
        pytest.param(1, 2.0, [2], id="alone"),
        pytest.param(1, 1.5, [2], id="rounded-up"),
        pytest.param(1, 0.25, [1], id="less-than-a-core"),
        pytest.param(2, 3.0, [2, 1], id="remainder-to-the-first"),
        pytest.param(4, 2.0, [1, 1, 1, 1], id="more-ranks-than-time"),
        pytest.param(2, 99.0, [4, 4], id="more-than-there-is"),
    ],
)
def test_a_time_limit_bounds_threads_and_not_cores(
    ranks: int, quota: float, threads: list[int]
) -> None:
    got = [decide_affinity(plain_cores(8), rank, ranks, quota_cores=quota) for rank in range(ranks)]
    assert [one.threads for one in got] == threads
    assert sum((one.cores for one in got), start=()) == tuple(range(8))


def test_threads_asked_for_win_and_say_why() -> None:
    forced = decide_affinity(plain_cores(8), 0, 2, threads=3, threads_reason="--threads")
    assert (forced.threads, forced.host_threads) == (3, 3)
    assert forced.cores == (0, 1, 2, 3)
    assert forced.reason == "--threads"


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0\n", (0,)),
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("6,2", (2, 6)),
        ("\n", ()),
    ],
    ids=["one", "range", "unsorted", "none"],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


def test_topology_is_read_and_restricted_to_usable_cpus(tmp_path: Path) -> None:
    for cpu, siblings in {0: "0,4", 4: "0,4", 1: "1,5"}.items():
        directory = tmp_path / f"cpu{cpu}" / "topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(siblings + "\n")
    usable = (0, 1, 4, 9)  # 5 is not ours; 9 is described nowhere
    siblings = read_siblings(usable, tmp_path)
    assert siblings == {0: (0, 4), 1: (1, 5), 4: (0, 4)}
    assert physical_cores(usable, siblings) == ((0, 4), (1,), (9,))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_cgroup_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "self/cgroup", "0::/machine/job\n")
    write(cgroup / "cpu.max", "max 100000\n")
    write(cgroup / "machine/cpu.max", "150000 100000\n")
    write(cgroup / "machine/job/cpu.max", "400000 100000\n")
    assert read_cpu_quota(proc, cgroup) == 1.5


def test_cgroup_limits_of_the_first_version(tmp_path: Path) -> None:
    write(tmp_path / "cpu/cpu.cfs_quota_us", "250000\n")
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000\n")
    assert read_cpu_quota(tmp_path / "no-proc", tmp_path) == 2.5


@pytest.mark.parametrize("text", ["max 100000\n", "nonsense", ""], ids=["max", "words", "empty"])
def test_no_cgroup_limit(tmp_path: Path, text: str) -> None:
    write(tmp_path / "cpu.max", text)
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1\n")
    assert read_cpu_quota(tmp_path / "no-proc", tmp_path) is None


def test_the_launcher_is_found_above_a_shell_and_odd_names(tmp_path: Path) -> None:
    write(tmp_path / "30/stat", "30 (bash) S 20 1 1")
    write(tmp_path / "20/stat", "20 (my) prog (x) S 10 1 1")
    write(tmp_path / "10/stat", "10 (prted) S 1 1 1")
    write(tmp_path / "31/stat", "31 (slurmstepd) S 1 1 1")
    assert find_launcher(30, tmp_path) == 10
    assert find_launcher(31, tmp_path) is None
    assert find_launcher(99, tmp_path) is None


def test_zero_threads_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1, not 0"):
        widen_affinity(0, 1, threads=0)


def test_omp_num_threads_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "bind_to", lambda cores: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert widen_affinity(0, 1).threads == 3
    assert widen_affinity(0, 1).reason == "OMP_NUM_THREADS"
    assert widen_affinity(0, 1, threads=2).threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert widen_affinity(0, 1).reason.startswith("alone on")


def test_a_system_that_cannot_bind_still_gets_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(affinity, "read_siblings", lambda usable: {})
    monkeypatch.setattr(affinity, "read_cpu_quota", lambda: None)
    bind_to((0,))
    got = widen_affinity(1, 2)
    assert (got.cores, got.host_cores, got.threads, got.host_threads) == ((), (), 4, 8)
    assert got.shared


UNDER_MPIRUN = """
import json, os, threading
bound = sorted(os.sched_getaffinity(0))
waiting, go_on = threading.Event(), threading.Event()
seen = []
def early():
    waiting.set(); go_on.wait(); seen.extend(sorted(os.sched_getaffinity(0)))
thread = threading.Thread(target=early)
thread.start(); waiting.wait()
from edgeflow_mpi.cluster.affinity import apply_threads, widen_affinity
from edgeflow_mpi.cluster.mpi_env import place_in_job
place = place_in_job()
mine = widen_affinity(place.local_rank, place.local_size)
go_on.set(); thread.join()
apply_threads(mine.threads)
import torch
print(json.dumps(dict(bound=bound, cores=mine.cores, now=sorted(os.sched_getaffinity(0)),
                      early_thread=seen, threads=mine.threads, torch=torch.get_num_threads())))
"""


@pytest.mark.mpi
def test_mpirun_binding_is_undone_for_all_threads_of_a_rank() -> None:
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert mpirun is not None, "no mpirun: run ./launch/setup.sh"
    root_allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    without = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [mpirun, "--bind-to", "core", "-n", "1", sys.executable, "-c", UNDER_MPIRUN],
        cwd=ROOT,
        env=without | root_allowed,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rank = json.loads(done.stdout)
    assert rank["now"] == rank["cores"] == rank["early_thread"] == sorted(os.sched_getaffinity(0))
    assert set(rank["bound"]) <= set(rank["cores"])
    assert rank["torch"] == rank["threads"]
