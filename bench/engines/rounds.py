"""Contenders in turn: short bursts of requests, one contender at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.engines.contenders import Absent, Contender, Place, Running, started
from bench.engines.cores import Bursts, Watch, lookouts
from edgeflow_mpi.progress import Progress

WRONG = 1e-3
"""An answer that is off by more, relative to its largest value, was not computed in 32 bits."""

_SPARE = 4
"""A contender is started only where so many times the model's size is free."""


@dataclass(frozen=True)
class Effort:
    """How much is measured: ``repeat`` requests a contender, ``burst`` of them at every turn.

    ``warmup`` untimed ones begin every turn, as the caches are the previous contender's.
    """

    repeat: int = 30
    burst: int = 5
    warmup: int = 1

    @property
    def turns(self) -> list[int]:
        """Requests of every turn."""
        full, rest = divmod(self.repeat, self.burst)
        return [self.burst] * full + ([rest] if rest else [])


@dataclass(frozen=True)
class Line:
    """One contender's measurement.

    Attributes
    ----------
    times_ms : tuple of tuple of float
        Turn by turn.
    error : float
        The largest error of the answer, relative to the largest value of the float64 one.
    peak_bytes, compute_ms, wait_ms : tuple of float
        By rank; the last two, of one request on average, for ours alone.
    spun_ms : float
        The longest time after a turn for which its threads went on spinning.
    plan : mapping
        Of ours: what was planned.
    """

    contender: Contender
    times_ms: tuple[tuple[float, ...], ...]
    error: float
    ready_s: float
    peak_bytes: tuple[float, ...]
    spun_ms: float
    compute_ms: tuple[float, ...] = ()
    wait_ms: tuple[float, ...] = ()
    plan: dict[str, Any] | None = None

    @property
    def all_ms(self) -> npt.NDArray[np.float64]:
        return np.concatenate([np.asarray(turn) for turn in self.times_ms])


@dataclass(frozen=True)
class Outcome:
    """Everybody's measurement.

    ``foreign_share`` is the share of the cores' time during the turns that went to anything but
    the contender whose turn it was.
    """

    lines: tuple[Line, ...]
    left_out: dict[str, str]
    foreign_share: float
    load_before: float
    bursts: Bursts


def measure(
    contenders: Sequence[Contender], place: Place, effort: Effort, progress: Progress
) -> Outcome:
    """Start everybody, give them their turns, end everybody.

    Contenders on one core have every core in turn: where one is slower than the other for long,
    two cores together would else be compared with the better one. A burst beside which a core was
    slow is repeated, see :mod:`bench.engines.cores`.

    A contender that does not come up, or whose answer is wrong, is left out and says so.
    """
    load = round(os.getloadavg()[0], 2)
    left_out: dict[str, str] = {}
    reference = np.load(place.model / "reference.npy")
    with contextlib.ExitStack() as stack:
        running: list[Running] = []
        errors: dict[str, float] = {}
        for contender in contenders:
            try:
                _require_memory(contender, place)
                with progress.step(f"{contender.name} is ready"):
                    one = stack.enter_context(started(contender, place))
                one.settle()
                errors[contender.name] = _error(one, reference)
            except Absent as reason:
                left_out[contender.name] = str(reason)
                progress.say(f"  LEFT OUT: {reason}")
            else:
                running.append(one)
        series = [_Series(one) for one in running]
        foreign = _Foreign()
        cores = place.cores[-2:]  # those that a contender on two has
        watch = Watch(stack.enter_context(lookouts(cores)))
        for turn, requests in enumerate(effort.turns):
            shift = turn % max(len(series), 1)
            for each in (*series[shift:], *series[:shift]):
                if each.running.contender.cores == 1:
                    each.running.move(cores[turn % len(cores)])
                each.turn(watch, foreign, requests, effort.warmup)
            said = ", ".join(each.headline() for each in series)
            progress.say(f"  turn {turn + 1} of {len(effort.turns)}: {said}")
        lines = tuple(each.line(errors[each.running.contender.name]) for each in series)
    return Outcome(lines, left_out, foreign.share, load, watch.bursts)


class _Series:
    """The turns of one contender so far."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self._times_ms: list[tuple[float, ...]] = []
        self._spun_s = 0.0
        self._replies: list[list[dict[str, Any]]] = []

    def turn(self, watch: Watch, foreign: _Foreign, requests: int, warmup: int) -> None:
        def burst() -> list[dict[str, Any]]:
            with foreign.beside(self.running):
                replies = self.running.answer(requests, warmup)
                self._spun_s = max(self._spun_s, self.running.settle())
            return replies

        replies = watch.undisturbed(burst)
        # Ranks of a part answer the same requests, parts have their own.
        firsts = replies[:: self.running.contender.ranks]
        self._times_ms.append(tuple(1e3 * t for reply in firsts for t in reply["times_s"]))
        self._replies.append(replies)

    def headline(self) -> str:
        return f"{self.running.contender.name} {np.median(self._times_ms[-1]):.1f}"

    def line(self, error: float) -> Line:
        contender, hello = self.running.contender, self.running.hello[0]
        count = sum(map(len, self._times_ms)) / len(contender.parts)

        def spent_ms(what: str) -> tuple[float, ...]:
            if what not in self._replies[0][0]:
                return ()
            ranks = range(len(self._replies[0]))
            return tuple(sum(turn[r][what] for turn in self._replies) / count * 1e3 for r in ranks)

        return Line(
            contender,
            tuple(self._times_ms),
            error,
            hello["ready_s"],
            tuple(reply["peak_bytes"] for reply in self._replies[-1]),
            self._spun_s * 1e3,
            spent_ms("compute_s"),
            spent_ms("wait_s"),
            {
                key: hello[key]
                for key in ("partitioner", "predicted_s", "units", "messages")
                if key in hello
            }
            or None,
        )


class _Foreign:
    """Processor time of the machine that was not the contender's whose turn it was."""

    def __init__(self) -> None:
        self._others_s = self._all_s = 0.0

    @contextlib.contextmanager
    def beside(self, running: Running) -> Any:
        busy_s, own_s, began_s = _busy_s(), running.cpu_s(), time.perf_counter()
        yield
        wall_s = time.perf_counter() - began_s
        self._all_s += wall_s * (os.cpu_count() or 1)
        self._others_s += (_busy_s() - busy_s) - (running.cpu_s() - own_s)

    @property
    def share(self) -> float:
        return max(0.0, self._others_s / self._all_s) if self._all_s else 0.0


def _busy_s() -> float:
    """Seconds that all cores together have not been idle, what a hypervisor took included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _error(running: Running, reference: npt.NDArray[np.float64]) -> float:
    answer = np.asarray(running.hello[0]["answer"])
    error = float(np.abs(answer - reference.ravel()).max() / np.abs(reference).max())
    if not error <= WRONG:
        raise Absent(f"{running.contender.name}: its answer is off by {error:.1e}")
    return error


def _require_memory(contender: Contender, place: Place) -> None:
    needed = _SPARE * (place.model / "model.pt2").stat().st_size
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if free < needed:
        raise Absent(
            f"{contender.name}: {free / 2**30:.1f} GiB of memory are free, where "
            f"{needed / 2**30:.1f} GiB are wanted"
        )
