"""The report's JSON has the keys that tools rely on, and numbers that add up."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import CLUSTER, SLOWER

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.report.results import (
    Difference,
    Latency,
    LayerComparison,
    RunReport,
    Verification,
    to_json,
    write_json,
)

PER_RANK = {
    "rank", "host", "units", "rows", "compute_ms", "wait_ms", "bytes_sent", "messages_sent",
    "peak_memory_bytes",
}  # fmt: skip


def read_back(report: RunReport, folder: Path) -> dict[str, object]:
    write_json(report, folder / "report.json")
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_keys_that_tools_rely_on(tmp_path: Path) -> None:
    found = read_back(CLUSTER, tmp_path)
    promised = {
        "model": "torchvision:resnet50",
        "ranks": 3,
        "partitioner": "lp",
        "input_shape": [1, 3, 224, 224],
        "latency_ms": {
            "median": 183.0,
            "p95": pytest.approx(190.45),
            "min": 180.0,
            "all": [192.0, 180.0, 181.5, 184.25, 183.0],
        },
        "single_device_ms": {"median": 386.4, "rank": 1},
        "speedup": pytest.approx(386.4 / 183.0),
        "predicted_ms": 175.5,
        "messages": 326,
        "bytes_sent": 3_424_672,
        "timings_s": {
            "launch": 0.0, "import": 6.5, "mpi": 0.25, "ranks": 0.0, "capture": 2.5,
            "profile": 7.25, "search": 0.0, "partition": 0.5, "compile": 0.125,
            "distribute": 1.75, "prepare": 0.0, "request": 0.0, "first_answer": 19.5,
        },
        "reused": ["model"],
        "versions": {"edgeflow_mpi": "0.1.0", "python": "3.11.9", "mpi": "Open MPI v5.0.11"},
    }  # fmt: skip
    assert {key: found[key] for key in promised} == promised
    verify = found["verify"]
    assert isinstance(verify, dict)
    assert {key: verify[key] for key in ("max_abs_err", "max_rel_err", "tolerance", "passed")} == {
        "max_abs_err": 3.1e-5, "max_rel_err": 2.1e-6, "tolerance": 1e-5, "passed": True,
    }  # fmt: skip
    per_rank = found["per_rank"]
    assert isinstance(per_rank, list)
    assert all(set(stats) >= PER_RANK for stats in per_rank)
    assert per_rank[2]["rows"] == 206
    assert per_rank[2]["host"] == "pi3-livingroom"


def test_what_was_not_found_out_is_null(tmp_path: Path) -> None:
    bare = replace(CLUSTER, single_device=None, predicted_ms=None, verification=None)
    found = read_back(bare, tmp_path)
    keys = ("single_device_ms", "speedup", "predicted_ms", "verify")
    assert [found[key] for key in keys] == [None] * 4


def test_a_failed_verification_says_so_and_names_outputs_and_layer(tmp_path: Path) -> None:
    verify = read_back(SLOWER, tmp_path)["verify"]
    assert isinstance(verify, dict)
    assert (verify["passed"], verify["max_rel_err"], verify["max_abs_err"]) == (False, 0.31, 0.5)
    assert verify["first_bad_layer"] == "conv2d_1"
    assert {name: entry["passed"] for name, entry in verify["outputs"].items()} == {
        "out": False,
        "aux": True,
    }


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    lost = Difference("out", math.nan, math.inf, math.nan, 1e-5, "it has values not finite")
    found = read_back(replace(CLUSTER, verification=Verification((lost,))), tmp_path)
    verify = found["verify"]
    assert isinstance(verify, dict)
    assert (verify["max_abs_err"], verify["max_rel_err"], verify["passed"]) == (None, None, False)
    assert "NaN" not in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_several_inputs_give_a_list_of_shapes() -> None:
    two = replace(CLUSTER, input_shapes=((1, 3, 8, 8), (1, 16)))
    assert to_json(two)["input_shape"] == [[1, 3, 8, 8], [1, 16]]


def test_right_outputs_do_not_excuse_wrong_layers() -> None:
    right = Difference("out", 0.0, 0.0, 0.0, 1e-5)
    wrong = LayerComparison((Difference("conv", 1.0, 1.0, 0.0, 1e-5),))
    assert Verification((right,)).passed
    assert not Verification((right,), layers=wrong).passed


def test_latency_of_one_and_of_none() -> None:
    one = Latency((7.0,))
    assert (one.median_ms, one.p95_ms, one.min_ms) == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no request"):
        Latency(())


def test_ranks_must_be_complete_and_in_order() -> None:
    with pytest.raises(ValueError, match="every rank once"):
        replace(CLUSTER, per_rank=CLUSTER.per_rank[1:])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda folder: folder, "it is a folder", id="folder"),
        pytest.param(lambda folder: folder / "no" / "r.json", "there is no folder", id="missing"),
        pytest.param(lambda folder: folder / ("x" * 300), "File name too long", id="long name"),
    ],
)
def test_a_report_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, make: object, words: str
) -> None:
    assert callable(make)
    with pytest.raises(InputError) as caught:
        write_json(CLUSTER, make(tmp_path))
    assert words in str(caught.value)
    assert str(caught.value).startswith("the report cannot be written to ")
    assert list(tmp_path.iterdir()) == []


def test_an_older_report_is_replaced_whole_and_links_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.write_text("old" * 10_000)
    link.symlink_to(target)
    write_json(CLUSTER, link)
    assert link.is_symlink()
    assert json.loads(target.read_text(encoding="utf-8"))["ranks"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_a_write_that_fails_leaves_the_older_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(self: Path, target: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_json(CLUSTER, path)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]


def test_a_device_is_written_to_as_it_is() -> None:
    write_json(CLUSTER, Path("/dev/null"))
    assert not Path("/dev/null").is_file()
