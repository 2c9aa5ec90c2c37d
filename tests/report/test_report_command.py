"""The command ``edgeflow-mpi``: its commands, and one sentence for what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeflow_mpi import __version__
from edgeflow_mpi.__main__ import main
from edgeflow_mpi.errors import ClusterError


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "give a command: run, plan, hosts, coverage; see edgeflow-mpi --help"),
        (["fly"], 2, "invalid choice: 'fly'"),
        (["--fast"], 2, "unrecognized arguments: --fast; see edgeflow-mpi --help"),
        (["coverage", "--fast"], 2, "unrecognized arguments: --fast; see edgeflow-mpi coverage"),
        (["coverage", "--models"], 2, "--models"),
        (["coverage", "--input-shape", "1,a"], 2, "the input shape '1,a' is not understood"),
        (["coverage", "--output", "/no/x.md"], 2, "the page cannot be written to /no/x.md"),
        (["coverage", "--models", "torchvision:resnet5"], 1, "has no model 'resnet5'"),
        (["coverage", "--models", "nope"], 1, "'nope' names no model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("edgeflow-mpi: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["coverage", "--help"], ["hosts", "--help"], ["plan", "--help"]]
)
def test_help_is_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "usage: edgeflow-mpi" in capsys.readouterr().out


def test_another_python_than_that_of_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(_: object) -> int:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr("edgeflow_mpi.__main__._plan", plan)
    assert main(["plan"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"edgeflow-mpi: numpy is not installed for {sys.executable};")
    assert printed.count("\n") == 1 and ".venv/bin/activate" in printed


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgeflow-mpi {__version__}\n"


def test_hosts_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edges.txt"
    file.write_text("pi-1 slots=1\npi-2 slots=2\n")
    assert main(["hosts", str(file)]) == 0
    assert "pi-2" in capsys.readouterr().out
    assert main(["hosts", str(tmp_path / "none.txt")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_run_gets_its_arguments_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Job:
        @staticmethod
        def main(arguments: list[str]) -> int:
            seen.append(arguments)
            return 7

    monkeypatch.setitem(sys.modules, "edgeflow_mpi.run", Job)
    assert main(["run", "--help", "--model", "torchvision:vgg16"]) == 7
    assert seen == [["--help", "--model", "torchvision:vgg16"]]


def test_a_failure_of_a_command_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Job:
        @staticmethod
        def main(arguments: list[str]) -> int:
            raise ClusterError("rank 3 is gone.")

    monkeypatch.setitem(sys.modules, "edgeflow_mpi.run", Job)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "edgeflow-mpi: rank 3 is gone.\n"


def test_coverage_of_one_model_as_a_table_and_as_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["coverage", "--models", "torchvision:squeezenet1_1", "--input-shape", "1,3,64,64"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "| squeezenet1_1 | 1×3×64×64 |" in table
    file = tmp_path / "page.md"
    assert main([*arguments, "--output", str(file)]) == 0
    assert capsys.readouterr().out == ""
    page = file.read_text(encoding="utf-8")
    assert table.strip() in page
    assert f"edgeflow-mpi {' '.join(arguments)} --output {file}" in page
