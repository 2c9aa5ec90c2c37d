"""Hostfiles: what is read, what is refused and with which words, what is warned about."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeflow_mpi.cluster.hosts import (
    HostEntry,
    check_hostfile,
    crowding_warning,
    format_hosts,
    hostfile_warnings,
    main,
    parse_hostfile,
)
from edgeflow_mpi.errors import HostfileError

HOSTFILES = Path(__file__).resolve().parents[1] / "hostfiles"


def test_lines_in_order_with_comments_and_spacing() -> None:
    text = """
    # the one with the model
    pi-1 slots=1          # rank 0
    user@pi-2.lan slots = 2 max_slots=4

    10.0.0.7 max-slots=3
    fe80::1 slots=1
    """
    assert parse_hostfile(text, "edges.txt") == (
        HostEntry("pi-1", 1, None, None, 3),
        HostEntry("pi-2.lan", 2, 4, "user", 4),
        HostEntry("10.0.0.7", None, 3, None, 6),
        HostEntry("fe80::1", 1, None, None, 7),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", ["names no host"], id="empty"),
        pytest.param("# pi-1 slots=1\n\n", ["names no host"], id="comments-only"),
        pytest.param("pi-1\npi-2 slots=two", ["line 2", "slots=two"], id="slots-not-a-number"),
        pytest.param("pi-1 slots=-1", ["line 1", "slots=-1"], id="slots-negative"),
        pytest.param("pi-1 slots=0", ["line 1", "pi-1", "no slot"], id="slots-zero"),
        pytest.param("pi-1 max_slots=0", ["line 1", "no slot"], id="max-slots-zero"),
        pytest.param("pi-1 slots=3 max_slots=2", ["3 slots", "max_slots=2"], id="above-maximum"),
        pytest.param("pi-1 pi-2", ["line 1", "'pi-2'"], id="two-hosts-on-a-line"),
        pytest.param("pi-1:4", ["line 1", "'pi-1 slots=4'"], id="mpich-syntax"),
        pytest.param("slots=4", ["line 1", "no host name"], id="no-host"),
        pytest.param("-n 4", ["line 1", "'-n'"], id="an-option"),
        pytest.param("a slots=1\nb\na slots=1", ["line 3", "a again", "line 1"], id="duplicate"),
        pytest.param("u@a\nv@a", ["line 2", "a again"], id="duplicate-under-two-users"),
    ],
)
def test_a_bad_file_is_explained_in_one_sentence(text: str, words: list[str]) -> None:
    with pytest.raises(HostfileError) as caught:
        parse_hostfile(text, "edges.txt")
    message = str(caught.value)
    assert "\n" not in message
    assert "edges.txt" in message
    assert [word for word in words if word not in message] == []


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00pi")
    with pytest.raises(HostfileError, match="does not exist"):
        check_hostfile(tmp_path / "missing.txt")
    with pytest.raises(HostfileError, match="is a directory"):
        check_hostfile(tmp_path)
    with pytest.raises(HostfileError, match="not a text file"):
        check_hostfile(binary)


def test_lines_without_slots_are_warned_about_by_name() -> None:
    warnings = hostfile_warnings(parse_hostfile("pi-1\npi-2 slots=1\npi-3 max_slots=2", "f"))
    assert len(warnings) == 1
    assert "pi-1, pi-3" in warnings[0]
    assert "pi-2" not in warnings[0]
    assert "slots=1" in warnings[0]


def test_ranks_are_numbered_as_long_as_slots_are_known() -> None:
    table = format_hosts(parse_hostfile("pi-1 slots=1\nbig slots=3\npi-2\npi-3 slots=1", "f"))
    assert [line.split() for line in table.splitlines()] == [
        ["host", "slots", "ranks"],
        ["pi-1", "1", "0"],
        ["big", "3", "1-3"],
        ["pi-2", "-", "?"],
        ["pi-3", "1", "?"],
    ]


@pytest.mark.parametrize(
    ("hosts", "intended", "words"),
    [
        pytest.param(["a", "b", "c"], False, None, id="one-each"),
        pytest.param(["a", "a", "a"], True, None, id="wanted"),
        pytest.param(["a"], False, None, id="single-rank"),
        pytest.param(["a", "b", "a", "b", "b"], False, ["a (2 ranks)", "b (3 ranks)"], id="two"),
        pytest.param(["a", "b", "b"], False, ["b (2 ranks)", "slots=1", "EDGEFLOW_LOCAL"], id="b"),
    ],
)
def test_crowded_hosts_are_named_unless_wanted(
    hosts: list[str], intended: bool, words: list[str] | None
) -> None:
    warning = crowding_warning(hosts, intended)
    if words is None:
        assert warning is None
    else:
        assert warning is not None
        assert [word for word in words if word not in warning] == []


def test_command_shows_ranks_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edges.txt"
    file.write_text("pi-1 slots=1\npi-2\n")
    assert main([str(file)]) == 0
    printed = capsys.readouterr()
    assert "pi-1" in printed.out
    assert printed.err.startswith("warning: no slots= for pi-2")


def test_command_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.txt")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["local.txt", "example-cluster.txt"])
def test_the_shipped_hostfiles_are_good(name: str) -> None:
    entries = check_hostfile(HOSTFILES / name)
    assert hostfile_warnings(entries) == ()
