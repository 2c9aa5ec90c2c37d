"""The command ``plan`` from end to end: a table, a verdict, files; one sentence for faults."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image
from planning_cases import cluster

from edgeflow_mpi.__main__ import main
from edgeflow_mpi.cluster.cluster_file import cluster_profile, load_cluster
from edgeflow_mpi.cluster.profile_yaml import save_profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.model.load import parse_input_shape
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.report import plots
from edgeflow_mpi.report.model_graph import model_graph
from edgeflow_mpi.units.text import load_tables
from edgeflow_mpi.units.verify import verify_tables

SHAPE = "1,3,64,48"
MODEL = ["--model", "planning_model:image", "--input-shape", SHAPE, "--quiet"]
NAMES = ["--partitioner", "equal", "proportional", "single"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cluster file of three fast devices, the third one slow."""
    file = tmp_path / "home.yaml"
    file.write_text(cluster(1, 1, 0.3, mbps=10_000, ms=0.01))
    return file


def test_a_table_a_verdict_and_json(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main(["plan", *MODEL, "--cluster", str(home), *NAMES, "--json", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [plan["partitioner"] for plan in found["plans"]] == ["equal", "proportional", "single"]
    assert found["input_shape"] == [1, 3, 64, 48]
    assert found["verdict"].split()[0] == "Use"
    assert " ".join(found["verdict"].split()) in " ".join(printed.out.split())
    assert "(uint8)" in printed.out
    for name in ("equal", "proportional", "single", "d0", "d1", "d2"):
        assert f"\n{name} " in printed.out
    assert math.isclose(
        found["single_device_ms"], min(p["predicted_ms"] for p in found["plans"][2:])
    )


def test_the_input_travels_as_pixels_unless_asked_otherwise(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = {}
    for dtype in ("auto", "uint8", "float32"):
        out = tmp_path / f"{dtype}.json"
        command = ["plan", *MODEL, "--cluster", str(home), "--partitioner", "equal"]
        assert main([*command, "--input-dtype", dtype, "--json", str(out)]) == 0
        moved[dtype] = json.loads(out.read_text())["plans"][0]["bytes_moved"]
    capsys.readouterr()
    assert moved["auto"] == moved["uint8"] < moved["float32"]


def test_activations_may_travel_narrower(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = []
    for wire in ("fp32", "bf16"):
        out = tmp_path / f"{wire}.json"
        command = ["plan", *MODEL, "--cluster", str(home), "--partitioner", "equal"]
        assert main([*command, "--wire", wire, "--json", str(out)]) == 0
        moved.append(json.loads(out.read_text())["plans"][0]["bytes_moved"])
    capsys.readouterr()
    assert moved[1] < moved[0]


def test_a_saved_plan_is_a_verified_table(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.txt"
    command = ["plan", *MODEL, "--cluster", str(home), *NAMES, "--exclude", "d1"]
    assert main([*command, "--save-plan", str(file)]) == 0
    capsys.readouterr()
    graph = model_graph("planning_model:image", [parse_input_shape(SHAPE)], progress=NoProgress())
    tables = load_tables(file)
    verify_tables(graph, Needs(graph), tables)
    assert (tables.size, len(tables.ranks[1])) == (3, 0)
    assert tables.predicted_s is not None


def test_a_measured_profile_serves_as_well(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = model_graph("planning_model:image", [parse_input_shape(SHAPE)], progress=NoProgress())
    file = tmp_path / "profile.yaml"
    save_profile(cluster_profile(load_cluster(home), graph), file, graph=graph)
    found = []
    for source in (["--cluster", str(home)], ["--profile", str(file)]):
        out = tmp_path / "out.json"
        assert main(["plan", *MODEL, *source, *NAMES, "--json", str(out)]) == 0
        found.append(json.loads(out.read_text()))
    capsys.readouterr()
    for one, other in zip(found[0]["plans"], found[1]["plans"], strict=True):
        assert one["predicted_ms"] == pytest.approx(other["predicted_ms"], rel=1e-4)
    assert found[0]["single_device"] == found[1]["single_device"] == "d0"


def test_a_plot_is_a_picture(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for form, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        file = tmp_path / f"plan.{form}"
        assert main(["plan", *MODEL, "--cluster", str(home), *NAMES, "--plot", str(file)]) == 0
        assert file.read_bytes().startswith(start)
    with Image.open(io.BytesIO((tmp_path / "plan.png").read_bytes())) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert picture.width > 1500
        assert colours is not None and len(colours) > 100


def test_a_plot_without_matplotlib_is_refused_before_planning(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    assert main(["plan", *MODEL, "--cluster", str(home), "--plot", "x.png"]) == 2
    assert "install it with pip install 'edgeflow-mpi[plots]'" in capsys.readouterr().err


FAULTS = {
    "no-source": ([], 2, "one of the arguments --cluster --profile is required"),
    "both": (["--cluster", "a", "--profile", "b"], 2, "not allowed with argument"),
    "no-cluster": (["--cluster", "none.yaml"], 1, "there is no cluster file none.yaml"),
    "no-profile": (["--profile", "none.yaml"], 1, "there is no profile none.yaml"),
    "partitioner": (
        ["--cluster", "home.yaml", "--partitioner", "eqal"], 2,
        "there is no partitioner 'eqal' (did you mean 'equal'?): choose all or some of ",
    ),
    "exclude": (
        ["--cluster", "home.yaml", "--partitioner", "equal", "--exclude", "d7"], 1,
        "--exclude names 'd7'",
    ),
    "exclude-first": (
        ["--cluster", "home.yaml", "--partitioner", "equal", "--exclude", "d0"], 1,
        "cannot be left out",
    ),
    "json": (["--cluster", "home.yaml", "--json", "no/x.json"], 2, ("the comparison cannot be "
             "written to no/x.json: there is no folder no")),
    "plot": (["--cluster", "home.yaml", "--plot", "x.gif"], 2, "must end in .png, .svg or .pdf"),
    "seconds": (["--cluster", "home.yaml", "--plan-seconds", "0"], 2, "--plan-seconds"),
    "typo": (["--cluster", "typo.yaml"], 1, ("typo.yaml, line 2: devices[0] has the unknown key "
             "'gflop' (did you mean 'gflops'?)")),
    "option": (["--cluster", "home.yaml", "--jason", "x"], 2, "unrecognized arguments: --jason"),
}  # fmt: skip


@pytest.mark.parametrize(("more", "status", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_one_sentence(
    more: list[str],
    status: int,
    words: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (home.parent / "typo.yaml").write_text(home.read_text().replace("gflops", "gflop", 1))
    monkeypatch.chdir(home.parent)
    assert main(["plan", *MODEL, *more]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("edgeflow-mpi: ") and printed.err.count("\n") == 1
    assert words in printed.err


def test_pixels_are_for_images(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--model", "planning_model:vector", "--input-shape", "1,8", "--quiet"]
    more = ["--cluster", str(home), "--input-dtype", "uint8", "--partitioner", "single"]
    assert main([*command, *more]) == 2
    assert "--input-dtype uint8 is for models that take one image" in capsys.readouterr().err
    assert main([*command, *more[:2], *more[4:]]) == 0
    assert "(float32)" in capsys.readouterr().out


def test_a_profile_of_another_shape_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = model_graph(
        "planning_model:image", [parse_input_shape("1,3,32,32")], progress=NoProgress()
    )
    file = tmp_path / "profile.yaml"
    save_profile(cluster_profile(load_cluster(home), graph), file, graph=graph)
    assert main(["plan", *MODEL, "--profile", str(file)]) == 1
    assert "with another input shape" in capsys.readouterr().err


def test_the_command_needs_no_mpi(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = "mpi4py.MPI" in sys.modules
    assert main(["plan", *MODEL, "--cluster", str(home), "--partitioner", "single"]) == 0
    capsys.readouterr()
    assert ("mpi4py.MPI" in sys.modules) == before
