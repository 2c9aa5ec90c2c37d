"""The bench of policies: its grid, its file, its claims, its page, and one small cell."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from bench.policies import __main__ as command
from bench.policies import measuring
from bench.policies.claims import claims, slower
from bench.policies.grid import (
    FEW,
    KINDS,
    MODELS,
    PARTITIONERS,
    Cluster,
    Place,
    clusters,
    places,
    slowdown,
)
from bench.policies.grouping import free_memory_bytes, groups
from bench.policies.measuring import Running
from bench.policies.page import page
from bench.policies.results import Cell, Device, Outcome, Results, load_results
from edgeflow_mpi.cluster.cluster_file import parse_cluster
from edgeflow_mpi.errors import ClusterError, InputError
from edgeflow_mpi.job.options import PARTITIONERS as KNOWN
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.testbed import system
from edgeflow_mpi.testbed.commands import Names


def outcome(name: str, ms: float, predicted_ms: float | None = None) -> Outcome:
    devices = (Device(5.0, ms / 2, ms / 2, 1.0, 100, 2, 30), Device(5.0, ms, 0.0, 0.0, 0, 0, 0))
    all_ms = (ms * 1.01, ms, ms * 0.99)
    return Outcome(name, predicted_ms or ms, all_ms, devices, 0.01, 0.97, 1e-6, 1e-5)


def cell(*outcomes: Outcome, model: str = "resnet50", kind: str = "equal-8") -> Cell:
    facts = {"processor": "a processor", "cores": 2}
    place = Place(model, Cluster(kind, KINDS[kind]), ())
    return Cell(
        model, f"{kind}-93_7", kind, 93.7, KINDS[kind], (0.02, 93.1),
        outcomes or (outcome("joint", 100.0), outcome("equal", 110.0), outcome("single", 600.0)),
        {}, facts, 12.5, slowdown(place),
    )  # fmt: skip


def test_the_grid_is_that_of_the_bench_and_the_cheapest_come_first() -> None:
    grid = places(MODELS, clusters())
    assert len(grid) == len({place.key for place in grid}) == len(MODELS) * len(KINDS) * 3
    assert {place.partitioners for place in grid} == {PARTITIONERS, FEW}
    assert {p.cluster.bandwidth_mbps for p in grid if p.partitioners == PARTITIONERS} == {93.7}
    assert grid[0].model == "mobilenet_v2" and grid[-1].model == "vgg16"
    assert set(PARTITIONERS) <= set(KNOWN)


def test_clusters_are_files_of_the_planner() -> None:
    for cluster in clusters([25.0]):
        spec = parse_cluster(cluster.text(), cluster.name)
        assert tuple(device.flops / 1e9 for device in spec.devices) == cluster.gflops
        assert {link.bandwidth_bytes_s for link in spec.links.values()} == {25e6 / 8}


def test_a_slower_testbed_is_so_in_everything_and_its_results_are_the_clusters() -> None:
    (cluster,) = (c for c in clusters([93.7]) if c.kind == "equal-8")
    own, slow = (parse_cluster(cluster.text(times), cluster.name) for times in (1, 4))
    assert [d.flops * 4 for d in slow.devices] == [d.flops for d in own.devices]
    assert [d.overhead_s / 4 for d in slow.devices] == [d.overhead_s for d in own.devices]
    for pair, link in slow.links.items():
        assert link.seconds(1000) == pytest.approx(4 * own.links[pair].seconds(1000))
    slowdowns = [slowdown(places([model], [cluster])[0]) for model in MODELS]
    assert slowdowns == sorted(slowdowns, reverse=True) and slowdowns[-1] == 1 < slowdowns[0]
    found = outcome("joint", 400.0, 440.0).quicker(4)
    assert (found.median_ms, found.predicted_ms) == (100.0, 110.0)
    assert (found.devices[0].compute_ms, found.devices[0].gflops) == (50.0, 20.0)
    assert found.excess == outcome("joint", 400.0, 440.0).excess


@pytest.mark.parametrize(
    ("sizes", "room", "expected"),
    [
        ([], 10, ()),
        ([3], 0, ((0,),)),
        ([3, 3, 3, 3], 100, ((0, 1, 2, 3),)),
        ([3, 3, 3, 3], 9, ((0, 1, 2), (0, 3))),
        ([3, 3, 3], 1, ((0, 1), (0, 2))),
    ],
)
def test_plans_are_measured_beside_the_first_as_memory_allows(
    sizes: list[int], room: int, expected: tuple[tuple[int, ...], ...]
) -> None:
    assert groups(sizes, room) == expected


def test_free_memory_is_read_where_it_is_known(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    assert free_memory_bytes(file) == 0
    file.write_text("MemTotal:  99 kB\nMemAvailable:   7 kB\n")
    assert free_memory_bytes(file) == 7 * 1024


def test_results_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert load_results(path) == Results()
    results = Results().plus(cell()).plus(cell(model="vgg16"))
    results.save(path)
    assert load_results(path) == results
    again = load_results(path).plus(replace(cell(), took_s=1.0))
    assert len(again.cells) == 2
    kept = path.read_text()
    for damaged in ("{}", kept[:-9], kept.replace("[101.0, 100.0, 99.0]", "[]"),
                    kept.replace('"predicted_ms": 100.0', '"predicted_ms": 0.0')):  # fmt: skip
        assert damaged != kept
        path.write_text(damaged)
        with pytest.raises(InputError, match="is not a file of results"):
            load_results(path)


def test_what_was_measured_on_other_devices_does_not_join_a_cell() -> None:
    here, more = Results((cell(outcome("joint", 100.0)),)), cell(outcome("gather", 300.0))
    (joined,) = here.joined(more, again=False).cells
    assert joined.had == ("joint", "gather")
    (again,) = here.joined(more, again=True).cells
    assert again.had == ("gather",)
    for other in (replace(more, gflops=(0.5,) * 8), replace(more, slowdown=more.slowdown + 1)):
        (replaced,) = here.joined(other, again=False).cells
        assert replaced == other


def test_ours_is_slower_only_beyond_noise() -> None:
    ours, near, far = outcome("joint", 100.0), outcome("equal", 98.5), outcome("lp", 90.0)
    assert not slower(cell(ours, near), near)
    assert slower(cell(ours, far), far)


def test_claims_say_what_holds_and_what_does_not() -> None:
    found = {claim.text.split(" ")[0]: claim for claim in claims(Results((cell(),)))}
    assert found["resnet50"].holds and "6.00 times" in found["resnet50"].text
    assert all(claim.holds for claim in claims(Results((cell(),))))
    wrong = replace(outcome("equal", 50.0, 40.0), error=1e-3)
    lines = [claim.line for claim in claims(Results((cell(outcome("joint", 100.0), wrong),)))]
    assert sum(line.startswith("DOES NOT HOLD") for line in lines) == 4
    assert any("except resnet50 on equal-8-93_7 (equal)" in line for line in lines)


def test_the_page_says_that_all_is_emulated() -> None:
    text = page(Results((cell(),)), "the command", ("policies-speedup.png",), "What we think.\n")
    assert "\n\nWhat we think.\n\n" in text
    assert "**emulated**" in text and "Made by `the command`: 1 of the 75 cells" in text
    assert "| resnet50 | 8×5     |   93.7 | **100** |   110 |    600 |     6.00 |" in text
    assert "![Speed-up over one device, emulated](policies-speedup.png)" in text


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.policies.plots import draw_all

    here = cell()
    slow = replace(here, cluster="equal-8-25", bandwidth_mbps=25.0)
    names = draw_all(Results((here, cell(model="vgg16"), slow)), tmp_path)
    assert len(names) == 4
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert draw_all(Results((slow,)), tmp_path) == ("policies-predicted.png",)


def test_what_is_done_is_not_done_again_and_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def measure(place: object, *_: object) -> Cell:
        made.append(place.key)  # type: ignore[attr-defined]
        return cell(model=place.model)  # type: ignore[attr-defined]

    monkeypatch.setattr(command, "measure_place", measure)
    monkeypatch.setattr(command, "take_down", lambda bed: None)
    arguments = [
        "--models", "resnet50", "vgg16", "--clusters", "equal-8", "--bandwidths", "93.7",
        "--partitioners", "joint", "equal", "single", "--results", str(tmp_path / "kept.json"),
        "--markdown", str(tmp_path / "page.md"),
    ]  # fmt: skip
    assert command.main([*arguments, "--seconds", "1"]) == 0
    assert made == ["resnet50 on equal-8-93_7"]
    assert command.main(arguments) == 0
    assert made == ["resnet50 on equal-8-93_7", "vgg16 on equal-8-93_7"]
    assert command.main(arguments) == 0
    assert len(made) == 2
    made.clear()
    (tmp_path / "kept.json").unlink()
    assert command.main([*arguments, "--beds", "2"]) == 0
    assert sorted(made) == ["resnet50 on equal-8-93_7", "vgg16 on equal-8-93_7"]
    assert "holds: all 6 answers" in capsys.readouterr().out
    assert (tmp_path / "page.md").read_text().startswith("# Every partitioner on emulated clusters")


def test_partitioners_that_a_cell_lacks_join_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def measure(place: Place, *_: object) -> Cell:
        asked.append(place.partitioners)
        found = [outcome(name, 300.0) for name in place.partitioners if name != "exact"]
        made = cell(*found)
        refused = {"exact": "too large"} if "exact" in place.partitioners else {}
        return replace(made, refused=refused, facts=made.facts | {"started": str(len(asked))})

    monkeypatch.setattr(command, "measure_place", measure)
    monkeypatch.setattr(command, "take_down", lambda bed: None)
    kept = tmp_path / "kept.json"

    def run(*words: str) -> Cell:
        options = ["--models", "resnet50", "--clusters", "equal-8", "--bandwidths", "93.7"]
        options += ["--results", str(kept), *words]
        assert command.main(options) == 0
        (found,) = load_results(kept).cells
        return found

    first = run("--partitioners", "joint", "single")
    more = run("--partitioners", "joint", "single", "gather", "exact")
    assert asked == [("joint", "single"), ("gather", "exact")]
    assert more.outcomes == (*first.outcomes, outcome("gather", 300.0))
    assert more.refused == {"exact": "too large"} and more.took_s == 2 * first.took_s
    assert more.facts["started"] == "1"
    assert {who: facts["started"] for who, facts in more.facts["later"].items()} == {
        "gather": "2", "exact": "2",
    }  # fmt: skip
    assert run("--partitioners", "gather", "exact") == more and len(asked) == 2
    assert run("--partitioners", "joint", "--again").had == ("joint",)


def test_a_cell_that_fails_ends_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def measure(place: Place, effort: object, progress: object, running: Running) -> Cell:
        if place.model == "resnet50":
            raise ClusterError("resnet50 does not fit")
        with subprocess.Popen(["sleep", "60"], text=True) as job:
            running.add(job)
            ended.append(job.wait())
        raise ClusterError("ended")

    monkeypatch.setattr(command, "measure_place", measure)
    monkeypatch.setattr(command, "take_down", lambda bed: None)
    cells = ["--models", "resnet50", "vgg16", "--clusters", "equal-8", "--bandwidths", "93.7"]
    assert command.main([*cells, "--beds", "2", "--results", str(tmp_path / "kept.json")]) == 1
    assert ended == [-signal.SIGTERM]
    assert "resnet50 does not fit" in capsys.readouterr().err


def test_misuse_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--clusters", "moon"]) == 2
    results = tmp_path / "kept.json"
    Results((cell(),)).save(results)
    kept = ["--results", str(results), "--seconds", "0", "--notes", str(tmp_path / "none.md")]
    assert command.main(kept) == 2
    assert command.main(["--results", str(tmp_path / "no" / "x.json"), "--seconds", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "moon" in lines[0] and "none.md" in lines[1]
    same = ["--results", str(results), "--seconds", "0", "--markdown", str(results)]
    assert command.main(same) == 2
    assert load_results(results).cells, "the page did not take their place"
    assert command.main(["--bandwidths", "0"]) == 2
    assert command.main(["--small", "--partitioners", "gather"]) == 2
    assert command.main(["--results", str(tmp_path / "new.json"), "--seconds", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "overwrite" in lines[0] and "0 Mbit/s" in lines[1]
    assert "leave out --partitioners" in lines[2] and "new.json yet" in lines[3]


def test_two_benches_do_not_measure_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFLOW_TESTBED", f"efpol{os.getpid()}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(command, "take_down", lambda bed: None)
    others: list[int] = []

    def measure(place: Place, *_: object) -> Cell:
        others.append(command.main(["--small", "--results", str(tmp_path / "other.json")]))
        return cell(model=place.model)

    monkeypatch.setattr(command, "measure_place", measure)
    cells = ["--models", "vgg16", "--clusters", "equal-8", "--bandwidths", "93.7"]
    assert command.main([*cells, "--results", str(tmp_path / "kept.json")]) == 0
    assert others == [1]
    assert "another bench.policies is at work on the testbed efpol" in capsys.readouterr().err


def test_one_small_cell_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = f"efpol{os.getpid()}"
    try:
        system.require_tools()
        if not system.find_features(Names(bed)).tbf:
            pytest.skip("this kernel has no token bucket filter (tbf)")
    except ClusterError as error:
        pytest.skip(str(error))
    (place,) = places(
        ["tests.job_models:tiny"], [replace(command._SMALL, gflops=(0.02, 0.01))],
        ["equal", "proportional", "gather", "single"],
    )  # fmt: skip
    options = ("--input-shape", "1,3,32,32")
    effort = measuring.Effort(1, options=options, bed=bed, turns=tmp_path / "turns")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        cell = measuring.measure_place(place, effort, NoProgress())
    finally:
        measuring.take_down(bed)
    assert [o.partitioner for o in cell.outcomes] == ["equal", "proportional", "gather", "single"]
    assert all(o.right and o.median_ms > 0 and len(o.devices) == 2 for o in cell.outcomes)
    assert cell.link is not None and cell.refused == {}
    assert list(tmp_path.rglob("reference/*.data"))
