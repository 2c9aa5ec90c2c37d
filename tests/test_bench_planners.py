"""The bench of the planners, small."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import planners
from bench.planner_cells import PARTITIONERS, Cell, Outcome, Results, load_results
from bench.planner_page import best_divided, geometric_mean, page
from bench.planner_timing import Timing, measure_timing
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.report.model_graph import model_graph

TIMING = Timing("a processor", 8, {"resnet50": 12345.0}, (("resnet50", 8, 9.5),))


def outcome(name: str, ms: float, devices: int = 2) -> Outcome:
    return Outcome(name, ms, 100.0 / ms, ms / 40.0 - 1, devices, 0.1, 10)


def cell(joint_ms: float = 50.0, cluster: str = "pi3-8-ethernet") -> Cell:
    outcomes = (outcome("joint", joint_ms), outcome("equal", 60.0), outcome("single", 55.0, 1))
    return Cell("vgg16", cluster, 8, 100.0, 40.0, outcomes, {"layers": "needs more"}, 1.5)


def test_gains_are_over_the_best_of_all_others() -> None:
    assert cell().gain() == pytest.approx(55 / 50)
    assert cell().gain("equal") == pytest.approx(60 / 50)
    assert cell().gain("layers") is None
    found = best_divided(cell())
    assert found is not None and found.partitioner == "equal"
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert not cell().is_slower and not cell(55.0).is_slower and cell(55.1).is_slower
    without = replace(cell(), outcomes=cell().outcomes[1:])
    assert without.is_slower, "a policy has a plan, and we have none"


def test_results_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = Results(2.5, 3, TIMING, (cell(cluster="a"), cell(49.0, cluster="b")))
    results.save(path)
    read = load_results(path)
    assert read is not None and replace(read, cells=()) == replace(results, cells=())
    assert [(c.cluster, c.refused, c.took_s) for c in read.cells] == [
        (c.cluster, c.refused, c.took_s) for c in results.cells
    ]
    assert read.cells[0].of("joint") == results.cells[0].of("joint")
    assert read.cells[1].gain() == pytest.approx(results.cells[1].gain())
    read.save(path)
    assert load_results(path) == read
    assert results.has("vgg16", "a") and not results.has("vgg16", "c")
    assert load_results(tmp_path / "none.json") is None


def test_the_page_says_what_was_found() -> None:
    results = Results(10.0, 0, TIMING, (cell(), cell(60.0, "home-wifi")))
    text = page(results, "the command", "plot.png")
    assert "Slower than another policy in 1 cells: vgg16 on home-wifi" in text
    assert "included:\n  **1.00**" in text  # of 55/50 and 55/60
    assert "| vgg16 | **2.00 (7.2)** | – | – | 1.67 (6.3) |" in text
    assert "| pi3-8-ethernet (8) | 1.10 |" in text
    assert "| resnet50 | 12,345 |" in text
    assert "](plot.png)" in text
    assert "](" not in page(results, "the command", None).split("## In short")[0].replace(
        "](../clusters/)", ""
    )


def test_a_bench_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    kept, plot, text = tmp_path / "kept.json", tmp_path / "plot.png", tmp_path / "page.md"
    small = ["--small", "--plan-seconds", "0.05", "--results", str(kept)]
    assert planners.main([*small, "--seconds", "0"]) == 0
    assert not kept.exists()
    assert planners.main([*small, "--seconds", "0.001"]) == 0
    first = load_results(kept)
    assert first is not None and len(first.cells) == 1, "one cell at least, however short the time"
    assert capsys.readouterr().err.splitlines()[-1].startswith("1 cells are left")
    assert planners.main([*small, "--plot", str(plot), "--markdown", str(text)]) == 0
    second = load_results(kept)
    assert second is not None and len(second.cells) == 2
    assert first.cells[0] in second.cells
    assert capsys.readouterr().out == text.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")
    for done in second.cells:
        assert {o.partitioner for o in done.outcomes} == set(PARTITIONERS)
        assert not done.is_slower


def test_evaluations_are_counted() -> None:
    graph = model_graph("torchvision:squeezenet1_1", None, progress=NoProgress())
    timing = measure_timing(lambda _: graph, ["some"], [], NoProgress())
    assert timing.evaluations_s["some"] > 0 and timing.devices == 8


def test_a_slower_plan_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    slower = replace(cell(99.0), cluster="two-laptops", model="squeezenet1_1")
    Results(10.0, 0, None, (slower,)).save(kept)
    arguments = ["--models", "squeezenet1_1", "--clusters", "clusters/two-laptops.yaml"]
    assert planners.main([*arguments, "--results", str(kept)]) == 1
    assert "joint is slower than another policy: squeezenet1_1" in capsys.readouterr().err


def test_what_goes_wrong_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> str:
        assert planners.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "nonsense" in said("--nonsense")
    assert "--seconds" in said("--seconds", "-1")
    assert "missing.yaml" in said("--clusters", str(tmp_path / "missing.yaml"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"cells": 3}))
    assert "not a file of results" in said("--small", "--results", str(other))
    Results(3.0, 0).save(other)
    assert "--plan-seconds 3 and --seed 0" in said("--small", "--results", str(other))
    assert "no folder" in said("--markdown", str(tmp_path / "none" / "page.md"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    assert "no folder clusters here" in said()
