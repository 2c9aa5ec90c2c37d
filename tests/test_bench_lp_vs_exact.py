"""The bench of linear programs against the exact optimum, small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import lp_vs_exact
from bench.layer_problems import random_problem
from edgeflow_mpi.progress import NoProgress


def test_no_method_beats_the_optimum_and_the_same_seed_gives_the_same_gaps() -> None:
    gaps, seconds = lp_vs_exact.random_gaps(25, 7, NoProgress())
    assert set(gaps) == set(lp_vs_exact.METHODS)
    assert all(len(found) == 25 and min(found) >= 0.0 for found in gaps.values())
    assert np.mean(gaps["lp"]) < min(np.mean(gaps["once"]), np.mean(gaps["naive"]))
    assert min(seconds.values()) > 0.0
    assert lp_vs_exact.random_gaps(25, 7, NoProgress())[0] == gaps


def test_random_problems_are_well_formed() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        drawn = random_problem(rng)
        problem = drawn.problem
        assert (np.diff(problem.low) >= 0).all() and (np.diff(problem.high) >= 0).all()
        assert (problem.low[:, :-1] < problem.high[:, 1:]).all()
        for x in (drawn.shares, *drawn.scaled):
            assert x[0] == 0 and x[-1] == problem.rows and (np.diff(x) >= 0).all()
            assert np.isfinite(problem.score(np.array(x))).all()


def test_a_page_a_plot_and_all_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page, plot, gaps = tmp_path / "page.md", tmp_path / "plot.svg", tmp_path / "gaps.json"
    arguments = ["--small", "--problems", "8", "--models", "squeezenet1_1", "--devices", "3"]
    files = ["--markdown", str(page), "--plot", str(plot), "--json", str(gaps)]
    assert lp_vs_exact.main(arguments + files) == 0
    text = page.read_text()
    assert capsys.readouterr().out == text
    assert "## 8 random layer problems" in text
    assert "### squeezenet1_1, 38 layers" in text
    assert "| squeezenet1_1 |" in text
    assert "](plot.svg)" in text
    assert plot.read_text().startswith("<?xml")
    found = json.loads(gaps.read_text())
    assert len(found["random"]["lp"]) == 8
    assert found["models"][0]["devices"] == 3


def test_what_goes_wrong_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lp_vs_exact.main(["--small", "--problems", "1", "--models", "magic"]) == 1
    assert "magic" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plot = str(tmp_path / "plot.svg")
    assert lp_vs_exact.main(["--small", "--problems", "1", "--plot", plot]) == 1
    assert "lp_vs_exact: --plot needs matplotlib" in capsys.readouterr().err
