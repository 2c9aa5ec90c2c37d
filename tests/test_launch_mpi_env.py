"""Settings for Open MPI in the environment of a rank: which, when, and that the user wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeflow_mpi.cluster.mpi_env import Place, configure_mpi_environment, place_in_job

ONE_HOST = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_SIZE": "4",
}
TWO_HOSTS = ONE_HOST | {"OMPI_COMM_WORLD_SIZE": "5"}
HYDRA_TWO_HOSTS = {"MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2", "PMI_SIZE": "3"}


@pytest.mark.parametrize(
    ("launcher", "place", "spans"),
    [
        pytest.param({}, Place(0, 1, 1), False, id="no-launcher"),
        pytest.param(ONE_HOST, Place(1, 4, 4), False, id="one-host"),
        pytest.param(TWO_HOSTS, Place(1, 4, 5), True, id="two-hosts"),
        pytest.param(HYDRA_TWO_HOSTS, Place(0, 2, 3), True, id="mpich"),
        pytest.param(ONE_HOST | {"OMPI_COMM_WORLD_SIZE": "x"}, Place(0, 1, 1), False, id="garbage"),
        pytest.param(
            ONE_HOST | {"OMPI_COMM_WORLD_LOCAL_RANK": "4"}, Place(0, 1, 1), False, id="impossible"
        ),
    ],
)
def test_place_in_job(launcher: dict[str, str], place: Place, spans: bool) -> None:
    assert place_in_job(launcher) == place
    assert place.spans_hosts is spans


@pytest.mark.parametrize(
    ("launcher", "progress"),
    [
        pytest.param({}, None, id="no-launcher"),
        pytest.param(ONE_HOST, None, id="one-host"),
        pytest.param(TWO_HOSTS, "1", id="two-hosts"),
    ],
)
def test_settings_by_kind_of_job(launcher: dict[str, str], progress: str | None) -> None:
    environ = dict(launcher)
    configure_mpi_environment(environ)
    assert environ["OMPI_MCA_mpi_yield_when_idle"] == "1"
    assert environ["OMPI_MCA_btl"] == "^ofi"
    assert environ.get("OMPI_MCA_btl_tcp_progress_thread") == progress
    assert ("OMPI_MCA_btl_tcp_eager_limit" in environ) is (progress is not None)
    assert {key: environ[key] for key in launcher} == launcher


def test_what_mpirun_was_told_wins() -> None:
    told = {
        "OMPI_MCA_btl": "tcp,self",
        "OMPI_MCA_mpi_yield_when_idle": "0",
        "OMPI_MCA_btl_tcp_progress_thread": "0",
        "OMPI_MCA_btl_tcp_eager_limit": "65536",
    }
    environ = TWO_HOSTS | told
    configure_mpi_environment(environ)
    assert {key: environ[key] for key in told} == told


def test_what_the_user_configured_wins(tmp_path: Path) -> None:
    (tmp_path / ".openmpi").mkdir()
    (tmp_path / ".openmpi" / "mca-params.conf").write_text(
        "# mpi_yield_when_idle = 0\n\nbtl = tcp,self  # no shared memory\nnonsense\n"
    )
    environ = {"HOME": str(tmp_path)}
    configure_mpi_environment(environ)
    assert "OMPI_MCA_btl" not in environ
    assert environ["OMPI_MCA_mpi_yield_when_idle"] == "1"


def test_a_second_call_changes_nothing() -> None:
    environ = dict(TWO_HOSTS)
    configure_mpi_environment(environ)
    once = dict(environ)
    configure_mpi_environment(environ)
    assert environ == once


@pytest.mark.parametrize("launcher", [ONE_HOST, TWO_HOSTS], ids=["one-host", "two-hosts"])
@pytest.mark.parametrize(("option", "value"), [("on", "1"), ("off", "0")])
def test_the_option_wins_over_all(launcher: dict[str, str], option: str, value: str) -> None:
    environ = launcher | {"OMPI_MCA_btl_tcp_progress_thread": "7"}
    configure_mpi_environment(environ, progress_thread=option)
    assert environ["OMPI_MCA_btl_tcp_progress_thread"] == value


@pytest.mark.parametrize(("wait", "yields"), [("auto", "1"), ("spin", "0"), ("sleep", "1")])
def test_only_who_spins_keeps_its_core(wait: str, yields: str) -> None:
    environ: dict[str, str] = {}
    configure_mpi_environment(environ, wait=wait)
    assert environ["OMPI_MCA_mpi_yield_when_idle"] == yields
