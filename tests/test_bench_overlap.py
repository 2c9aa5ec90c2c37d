"""The bench of hidden messages: what it counts, on made-up requests, and once for real, small."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.overlap import __main__ as command
from bench.overlap.account import Seen, Share, Wire, account, arrivals, worked_s
from bench.overlap.cell import in_one_piece
from bench.overlap.observed import Observed
from bench.overlap.page import page
from bench.overlap.replay import replay_s
from bench.overlap.results import Case, Plan, Results, load_results
from edgeflow_mpi.errors import InputError, StallError
from edgeflow_mpi.runtime.memory import MemoryNetwork
from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.spans import Span
from edgeflow_mpi.units.tables import Requirement, Transfer, Unit, UnitTables
from tests.jobs import finished

ROWS = Span(0, 4)
FLIES = Transfer("a", "c", 0, 1, ROWS, tag=0)
SECOND = Transfer("a", "d", 0, 1, ROWS, tag=1)
SCATTERED = Transfer("x", "b", 0, 1, ROWS, tag=2)


def unit(
    index: int, layer: str, rank: int, *, takes: tuple[Transfer, ...] = (),
    sends: tuple[Transfer, ...] = (), reads: tuple[str, ...] = (),
) -> Unit:  # fmt: skip
    needs = tuple(Requirement(t.producer, ROWS, (t,)) for t in takes)
    needs += tuple(Requirement(name, ROWS, ()) for name in reads)
    return Unit(index, layer, rank, ROWS, ROWS, needs, sends, "conv2d")


def tables(*ranks: tuple[Unit, ...]) -> UnitTables:
    return UnitTables("model", "", "equal", None, ranks)


PAIR = tables(
    (unit(0, "x", 0, sends=(SCATTERED,)), unit(1, "a", 0, sends=(FLIES,), reads=("x",))),
    (unit(0, "b", 1, takes=(SCATTERED,)), unit(1, "c", 1, takes=(FLIES,))),
)


def test_messages_of_one_sender_queue_for_its_link_and_for_their_receiver() -> None:
    wire = Wire(0.5, 2.0)
    other = Transfer("b", "c", 2, 1, ROWS, tag=3)
    there = arrivals({FLIES: 0.0, SECOND: 1.0, other: 1.0}, lambda _: wire)
    # SECOND begins to leave at 2 and reaches rank 1 at 2.5, where the other one, there since 1.5,
    # is taken in until 4.5.
    assert there == {FLIES: 2.5, other: 4.5, SECOND: 6.5}


@pytest.mark.parametrize(
    ("noticed_s", "exposed_s", "late_s"),
    [
        pytest.param(12.0, 0.0, 0.0, id="computed-meanwhile"),
        pytest.param(12.5, 0.5, 0.5, id="noticed-late"),
        pytest.param(16.0, 4.0, 4.0, id="slower-than-its-link"),
    ],
)
def test_what_the_reader_had_nothing_to_do_in(
    noticed_s: float, exposed_s: float, late_s: float
) -> None:
    sender = Seen([(0.0, 1.0), (1.0, 9.0)], {SCATTERED: 1.0, FLIES: 9.0}, {})
    taker = Seen([(5.0, 12.0), (noticed_s, 20.0)], {}, {SCATTERED: 5.0, FLIES: noticed_s})
    found = account(PAIR, [sender, taker], lambda _: Wire(0.0, 2.0), frozenset({"x"}))
    assert found.inner == Share(2.0, 2.0, exposed_s, late_s)
    assert found.inner.hidden == 1 - exposed_s / 2.0
    # The input took 4 s from its sending, 2 s of them by its link.
    assert found.total == Share(4.0, 2.0, exposed_s + 4.0, late_s + 2.0)


def test_waiting_for_who_still_computes_is_not_the_link() -> None:
    sender = Seen([(0.0, 1.0), (1.0, 9.0)], {SCATTERED: 1.0, FLIES: 9.0}, {})
    taker = Seen([(2.0, 3.0), (9.5, 20.0)], {}, {SCATTERED: 2.0, FLIES: 9.5})
    found = account(PAIR, [sender, taker], lambda _: Wire(0.0, 1.0), frozenset({"x"}))
    assert found.inner == Share(1.0, 0.5, 0.5, 0.0)


def test_a_wait_counts_from_when_anything_could_have_begun() -> None:
    # The first could have begun at 1, but its message takes until 8; the second is handed over
    # at 5 and is there first.
    slow, fast = replace(FLIES, source=0), Transfer("e", "d", 2, 1, ROWS, tag=4)
    three = tables(
        (unit(0, "a", 0, sends=(slow,)),),
        (unit(0, "c", 1, takes=(slow,)), unit(1, "d", 1, takes=(fast,))),
        (unit(0, "e", 2, sends=(fast,)),),
    )
    ranks = [
        Seen([(0.0, 1.0)], {slow: 1.0}, {}),
        Seen([(8.0, 9.0), (6.0, 7.0)], {}, {slow: 8.0, fast: 6.0}),
        Seen([(0.0, 5.0)], {fast: 5.0}, {}),
    ]
    costs = {slow: Wire(0.0, 6.0), fast: Wire(0.0, 1.0)}
    found = account(three, ranks, costs.__getitem__, frozenset()).total
    # Under way from 1 to 8 (the receiver takes the second in after the first); idle from 1 to 6
    # and from 7 to 8.
    assert found == Share(7.0, 1.0, 6.0, 0.0)


def test_units_keep_a_rank_busy_from_one_to_the_next_unless_it_waits() -> None:
    taker = Seen([(2.0, 3.0), (9.5, 20.0)], {}, {SCATTERED: 2.0, FLIES: 9.5})
    assert worked_s(PAIR.ranks[1], taker) == [1.0, 10.5]
    early = Seen([(2.0, 3.0), (3.25, 5.0)], {}, {SCATTERED: 2.0, FLIES: 2.5})
    assert worked_s(PAIR.ranks[1], early) == [1.0, 2.0]


def test_a_replay_has_links_or_none_and_may_block() -> None:
    back = Transfer("c", "y", 1, 0, ROWS, tag=5)
    loop = tables(
        (
            unit(0, "x", 0, sends=(SCATTERED,)),
            unit(1, "a", 0, reads=("x",)),
            unit(2, "y", 0, takes=(back,)),
        ),
        (unit(0, "b", 1, takes=(SCATTERED,)), unit(1, "c", 1, sends=(back,), reads=("b",))),
    )
    busy_s = [[1.0, 3.0, 1.0], [2.0, 2.0]]
    assert replay_s(loop, busy_s, lambda _: Wire(0.0, 0.0)) == 1 + 2 + 2 + 1
    assert replay_s(loop, busy_s, lambda _: Wire(0.5, 1.0)) == 6 + 2 * 1.5
    # Rank 0 is busy with the message until 2.5, and with a until 5.5: not what is waited for.
    assert replay_s(loop, busy_s, lambda _: Wire(0.5, 1.0), "blocking") == 9.0
    assert replay_s(loop, [[1.0, 8.0, 1.0], [2.0, 2.0]], lambda _: Wire(0.5, 1.0)) == 10.0
    slow = replay_s(loop, [[1.0, 8.0, 1.0], [2.0, 2.0]], lambda _: Wire(0.5, 1.0), "blocking")
    assert slow == 11.5


def test_pieces_become_one_unit() -> None:
    top, rest = Span(0, 1), Span(1, 4)
    halo = Transfer("x", "a", 1, 0, Span(4, 5), tag=6)
    left = Transfer("a", "b", 0, 1, top, tag=7)
    first = Unit(0, "x", 0, ROWS, ROWS, (), (), "input")
    pieces = (
        Unit(1, "a", 0, top, top, (Requirement("x", Span(0, 2), ()),), (left,), "conv2d"),
        Unit(2, "a", 0, rest, rest, (Requirement("x", Span(0, 5), (halo,)),), (), "conv2d"),
    )
    last = Unit(3, "b", 0, ROWS, ROWS, (Requirement("a", ROWS, ()),), (), "conv2d")
    merged = in_one_piece(tables((first, *pieces, last)))
    need = Requirement("x", Span(0, 5), (halo,))
    assert merged.ranks[0][1] == Unit(1, "a", 0, ROWS, ROWS, (need,), (left,), "conv2d")
    assert [unit.index for unit in merged.ranks[0]] == [0, 1, 2]
    assert in_one_piece(merged) == merged


def region() -> Region:
    import torch

    return Region(torch.zeros(4), 1, 16, 16)


def test_a_blocking_transport_waits_until_messages_are_taken_and_carried() -> None:
    network = MemoryNetwork(2)
    mine = Observed(network.transport(0), lambda _: Wire(0.0, 0.01), timeout_s=0.05)
    other = Observed(network.transport(1), lambda _: Wire(0.0, 0.01), timeout_s=0.05)
    handle, there = mine.open_send(FLIES, region()), other.open_receive(FLIES, region())
    rested: list[bool] = []
    mine.rest, mine.blocking = lambda: rested.append(True), True
    other.start_receives((there,))
    mine.start_sends((handle,))
    assert rested == [True] and mine.sends_complete()
    assert other.arrived([there]) == [there]
    assert other.noticed[FLIES] - mine.sent[FLIES] >= 0.01
    mine.forget()
    assert mine.sent == {}
    with pytest.raises(StallError, match="no message has moved"):
        mine.start_sends((handle,))


def plan(name: str, ms: float) -> Plan:
    share = Share(0.01, 0.008, 0.001, 0.00025)
    blocking = (ms + 9, ms + 10, ms + 20)
    return Plan(name, (ms, ms, ms + 1), blocking, 90.0, 95.0, 120.0, share, share, 7, 900, 0.01)


def case(thread: bool = True, ms: float = 96.0) -> Case:
    return Case("testbed-4", "resnet18", thread, (plan("joint", ms), plan("equal", 2 * ms)))


def test_results_are_read_back_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert load_results(path) == Results()
    results = Results((), {"cores": 2}).plus(case(ms=1.0)).plus(case(ms=99.0)).plus(case(False))
    results.save(path)
    assert load_results(path) == results and len(results.cases) == 2
    text = page(results, "overlap.png")
    assert "**emulated**" in text and "(overlap.png)" in text
    row = next(line for line in text.splitlines() if line.startswith("| resnet18 | joint"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "resnet18", "joint", "10.0", "1.0", "0.2", "90 %", "80 %", "90.0", "95.0", "96.0", "106.0",
        "10.0", "1 %", "90 %", "99.0",
    ]  # fmt: skip
    told = " ".join(text.split())
    assert "*joint* on emulated hosts: 90 % hidden; 1 % over the latency by the rates" in told
    assert "blocking takes 10 % longer than overlap, and in 1 of 1 cases every request" in told
    assert "hidden, thread" not in page(Results((case(),), {"note": "A note."}), None)
    path.write_text("[]")
    with pytest.raises(InputError, match="is not a file of results"):
        load_results(path)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.overlap.plot import draw

    draw(Results((case(),)), tmp_path / "overlap.png")
    assert (tmp_path / "overlap.png").read_bytes().startswith(b"\x89PNG")


def test_misuse_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--settings", "moon"]) == 2
    assert command.main(["--repeat", "0"]) == 2
    assert command.main(["--results", str(tmp_path / "no" / "x.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(250)
def test_it_runs(tmp_path: Path) -> None:
    results = tmp_path / "overlap.json"
    done = finished(
        [
            sys.executable, "-m", "bench.overlap", "--small", "--repeat", "3",
            "--results", str(results), "--cache", str(tmp_path / "cache"),
        ],
        timeout_s=240,
    )  # fmt: skip
    printed = done.success()
    found = load_results(results)
    assert [one.progress_thread for one in found.cases] == [True, False]
    for one in found.cases:
        assert {"joint", "equal"} <= {each.name for each in one.plans}
        for each in one.plans:
            assert len(each.latency_ms) == len(each.blocking_ms) == 3
            assert 0 < each.hidden_ms <= each.linked_ms <= each.linked_blocking_ms
            assert each.messages > 0 and each.inner.transfer_s <= each.total.transfer_s
    assert printed.count("% of") == sum(len(one.plans) for one in found.cases)
