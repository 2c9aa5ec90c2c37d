"""Real hosts and links on this machine, and a job on them. Skipped where they cannot be had."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from testbed_cases import BED, ROOT, Launch

from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.testbed import bed, system
from edgeflow_mpi.testbed.commands import Names
from edgeflow_mpi.testbed.state import bed_name, folder, load_state

CLUSTER = """\
devices:
  - {name: cam, gflops: 0.02, overhead_us: 50}
  - {name: box, gflops: 0.01, overhead_us: 50}
  - {name: shelf, gflops: 0.01, overhead_us: 50}
links:
  default: {bandwidth_mbps: 80, latency_ms: 0}
"""


@pytest.fixture(scope="module")
def cluster(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hosts, up."""
    file = tmp_path_factory.mktemp("cluster") / "trio.yaml"
    file.write_text(CLUSTER)
    done = launch("up", file)
    assert done.returncode == 0, done.stderr
    return file


def ours() -> list[str]:
    return [space for space in system.namespaces() if Names(BED).owns(space)]


def test_up_says_what_there_is_and_what_links_do(launch: Launch, cluster: Path) -> None:
    done = launch("status")
    assert done.returncode == 0, done.stderr
    first, link, *hosts = done.stdout.splitlines()
    assert first == "trio: 3 hosts, cam, box, shelf"
    assert "cam to box: " in link and "80 Mbit/s and 0 ms in the file" in link
    assert [line.split()[0] for line in hosts] == ["cam", "box", "shelf"]
    state = load_state(BED)
    assert state is not None
    # A busy machine measures anything but nothing; a bucket that is still full, a little more.
    assert state.measured[0].bandwidth_mbps > 0
    assert sorted(ours()) == sorted(state.namespaces)


def test_a_host_has_its_own_name_and_knows_the_others(launch: Launch, cluster: Path) -> None:
    done = launch("exec", "box", "--", "sh", "-c", "hostname; cat /etc/hosts; echo $0", "a b")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("box", "a b")
    assert [line.split()[1] for line in lines[1:-1]] == ["localhost", "cam", "box", "shelf"]
    assert os.uname().nodename not in ("cam", "box", "shelf")


def test_up_again_changes_nothing(launch: Launch, cluster: Path) -> None:
    before = {space: (system.NAMESPACES / space).stat().st_ino for space in ours()}
    done = launch("up", cluster)
    assert done.returncode == 0, done.stderr
    assert "is up already" in done.stdout
    assert {space: (system.NAMESPACES / space).stat().st_ino for space in ours()} == before


def test_another_cluster_waits_until_this_one_is_idle(
    launch: Launch, cluster: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(CLUSTER.replace("shelf", "attic"))
    sleeper = subprocess.Popen(
        ["nsenter", f"--net={system.NAMESPACES / Names(BED).host('box')}", "sleep", "100"]
    )
    try:
        deadline_s = time.monotonic() + 20
        while not system.processes_in(Names(BED).host("box")) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        refused = launch("up", other)
        assert refused.returncode == 1
        assert "trio is up and 1 processes run on it: launch/testbed down" in refused.stderr
        # What is left after a kill is removed together with what still runs there.
        assert launch("down").stdout == "trio is down\n"
        assert sleeper.wait(10) == -signal.SIGTERM
    finally:
        sleeper.kill()
        sleeper.wait()
    assert (ours(), folder(BED).exists()) == ([], False)
    assert launch("down").stdout == "no testbed is up\n"
    assert launch("status").returncode == 1
    assert launch("up", cluster).returncode == 0


_RECEIVE = """\
import socket
with socket.create_server(("", 7007)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    print(sum(map(len, iter(lambda: connection.recv(1 << 20), b""))))
"""
_SEND = """\
import pathlib, socket
with socket.create_connection(("box", 7007)) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(20):
        connection.sendall(bytes(50_000))
        connection.sendall(b"a message")
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
names, values = [
    line.split()
    for line in pathlib.Path("/proc/net/netstat").read_text().splitlines()
    if line.startswith("TcpExt:")
]
counts = dict(zip(names, values))
print(counts["TCPSACKReorder"], counts["TCPTSReorder"], counts["TCPFastRetrans"])
"""


def test_short_messages_do_not_overtake_long_ones(launch: Launch, cluster: Path) -> None:
    if Names(BED).switch not in ours():
        pytest.skip("links without a switch of our own")
    command = [str(ROOT / "launch" / "testbed"), "exec", "box", "--", sys.executable, "-c"]
    with subprocess.Popen(
        [*command, _RECEIVE], env=os.environ | {"EDGEFLOW_TESTBED": BED},
        stdout=subprocess.PIPE, text=True,
    ) as receiver:  # fmt: skip
        try:
            assert receiver.stdout is not None and receiver.stdout.readline() == "listening\n"
            sent = launch("exec", "cam", "--", sys.executable, "-c", _SEND)
            assert sent.returncode == 0, sent.stderr
            assert receiver.stdout.readline() == f"{20 * (50_000 + 9)}\n"
        finally:
            receiver.kill()
    assert sent.stdout == "0 0 0\n", "TCP took segments to be lost that were only overtaken"


def test_a_job_runs_with_a_rank_on_every_host(
    launch: Launch, cluster: Path, tmp_path: Path
) -> None:
    done = launch(
        "run", "--network-only", "--",
        "--model", "tests.job_models:tiny", "--input-shape", "1,3,32,32",
        "--partitioner", "equal", "--verify", "--repeat", "2", "--cache", tmp_path,
        "--threads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "on 3 ranks of 3 hosts" in done.stdout
    assert "the answer is right" in done.stdout
    assert "setpgid" not in done.stderr


def test_slowed_down_devices_give_the_same_answer_and_say_so(launch: Launch, cluster: Path) -> None:
    done = launch(
        "run", "--", "--model", "tests.job_models:tiny", "--input-shape", "1,3,32,32",
        "--partitioner", "equal", "--verify", "--repeat", "2", "--profile-from-cluster",
        "--emulate-units", "stated",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "emulated       devices of trio" in done.stdout
    assert "the answer is right" in done.stdout


def test_the_last_words_of_a_job_come_through_a_zero_byte() -> None:
    words = r"sys.stderr.write('first\nharmless words\n\0\nlast\n')"
    script = (
        f"import sys; from edgeflow_mpi.testbed import bed; bed._leave_out('harmless'); {words}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=30, check=True, cwd=ROOT
    )
    assert done.stderr == b"first\n\0\nlast\n"


def test_a_job_that_is_told_to_end_ends(launch: Launch, cluster: Path) -> None:
    job = subprocess.Popen(
        [str(ROOT / "launch" / "testbed"), "exec", "box", "--", "sleep", "100"],
        env=os.environ | {"EDGEFLOW_TESTBED": BED},
    )
    box = Names(BED).host("box")
    try:
        deadline_s = time.monotonic() + 20
        while _names(box) != ["sleep"] and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert _names(box) == ["sleep"], "it takes the place of all shells"
        job.terminate()
        assert job.wait(10) == -signal.SIGTERM
        assert system.processes_in(box) == ()
    finally:
        job.kill()
        job.wait()


def _names(host: str) -> list[str]:
    """Of what runs on a host."""
    found = []
    for pid in system.processes_in(host):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def test_what_a_killed_up_left_is_made_anew(launch: Launch, cluster: Path) -> None:
    system.delete_namespace(Names(BED).host("shelf"))
    assert "only remains of the testbed trio" in launch("status").stderr
    done = launch("up", cluster)
    assert done.returncode == 0, done.stderr
    assert launch("status").returncode == 0


def test_a_failure_halfway_leaves_nothing(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch("down")
    file = tmp_path / "trio.yaml"
    file.write_text(CLUSTER)

    def fail(*_: object) -> None:
        raise ClusterError("nothing comes through")

    monkeypatch.setattr(bed, "probe", fail)
    with pytest.raises(ClusterError, match="nothing comes through"):
        bed.up(BED, file, ignore_latency=False, say=print)
    assert (ours(), folder(BED).exists()) == ([], False)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_up_that_is_told_to_end_leaves_nothing(
    launch: Launch, tmp_path: Path, which: signal.Signals
) -> None:
    launch("down")
    file = tmp_path / "slow.yaml"
    file.write_text(CLUSTER.replace("mbps: 80", "mbps: 0.05"))  # seconds to measure
    up = subprocess.Popen(
        [str(ROOT / "launch" / "testbed"), "up", str(file)],
        env=os.environ | {"EDGEFLOW_TESTBED": BED},
        stderr=subprocess.PIPE,
    )
    try:
        deadline_s = time.monotonic() + 30
        while len(ours()) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        time.sleep(0.5)
        up.send_signal(which)
        _, said = up.communicate(timeout=20)
    finally:
        up.kill()
        up.wait()
    assert (up.returncode, said) == (130, b"")
    assert (ours(), folder(BED).exists()) == ([], False)


def test_a_namespace_of_somebody_else_is_not_touched(launch: Launch, tmp_path: Path) -> None:
    launch("down")
    file = tmp_path / "trio.yaml"
    file.write_text(CLUSTER)
    foreign = Names(BED).host("theirs")
    subprocess.run(["ip", "netns", "add", foreign], check=True, timeout=10)
    try:
        done = launch("up", file)
        assert done.returncode == 1
        assert f"namespace {foreign} exists" in done.stderr
        assert ours() == [foreign]
    finally:
        system.delete_namespace(foreign)


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (("up", "no-such.yaml"), "no-such.yaml cannot be read", 2),
        (("exec", "nobody", "--", "true"), "no testbed is up", 1),
        (("run",), "no testbed is up", 1),
        (("dance",), "invalid choice", 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_misuse_is_one_sentence(
    launch: Launch, words: tuple[str, ...], said: str, status: int
) -> None:
    launch("down")
    done = launch(*words)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="must be root"):
        bed.down(BED)


def test_a_testbed_has_a_plain_name() -> None:
    assert bed_name({}) == "edgeflow"
    assert bed_name({"EDGEFLOW_TESTBED": "other2"}) == "other2"
    with pytest.raises(ClusterError, match=r"EDGEFLOW_TESTBED is '\.\./x'"):
        bed_name({"EDGEFLOW_TESTBED": "../x"})


def test_the_scripts_parse() -> None:
    for script in ("testbed", "testbed-agent"):
        done = subprocess.run(
            ["bash", "-n", ROOT / "launch" / script], capture_output=True, timeout=10, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
