"""Speed-ups by number of devices, and the pictures of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from planning_cases import LARGE, cluster, task

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.report import plots
from edgeflow_mpi.report.planning import Comparison, compare_partitioners
from edgeflow_mpi.report.scaling import Scaling, speedups
from edgeflow_mpi.report.verdict import verdict

NAMES = ("equal", "proportional", "single")


def compared(text: str, *names: str) -> Comparison:
    return compare_partitioners(task(text, LARGE), names or NAMES, NoProgress())


@pytest.fixture(scope="module")
def four() -> Comparison:
    """Four devices, the second the fastest, one without work."""
    text = cluster(2, 4, 1, 3, 2, mbps=10_000, ms=0.001)
    return compared(text + "exclude: [d4]")


@pytest.fixture(scope="module")
def growth(four: Comparison) -> Scaling:
    return speedups(four, NoProgress())


def test_speedups_are_those_of_the_comparison_for_all_devices(
    four: Comparison, growth: Scaling
) -> None:
    assert growth.counts == (1, 2, 3, 4)
    for name, values in growth.by_partitioner.items():
        (candidate,) = (c for c in four.candidates if c.partitioner == name)
        assert values[-1] == pytest.approx(four.speedup(candidate))


def test_devices_are_added_fastest_first(four: Comparison, growth: Scaling) -> None:
    """With two devices, equal shares on d0 and d1 take what comparing just these two says."""
    assert four.single is not None and four.single.used == (1,)
    two = compared(cluster(2, 4, mbps=10_000, ms=0.001))
    equal = two.candidates[0]
    expected = four.single.predicted_s / equal.predicted_s
    assert growth.by_partitioner["equal"][1] == pytest.approx(expected)
    assert growth.by_partitioner["equal"][0] == pytest.approx(0.5, rel=0.05)


def test_no_speedup_exceeds_the_bound(growth: Scaling) -> None:
    assert list(growth.bound) == sorted(growth.bound)
    for values in growth.by_partitioner.values():
        for value, limit in zip(values, growth.bound, strict=True):
            assert value is not None and value <= limit * (1 + 1e-9)


@pytest.mark.parametrize("case", ["four", "many", "alone", "elsewhere"])
def test_every_result_can_be_drawn(case: str, four: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    comparison = {
        "four": lambda: four,
        "many": lambda: compared(cluster(*[1] * 40, mbps=1000, ms=0.01), "equal"),
        "alone": lambda: compared(cluster(1), "equal", "single"),
        "elsewhere": lambda: compared(cluster(0.2, 20, mbps=1000, ms=0.01)),
    }[case]()
    words = verdict(comparison, NoProgress())
    file = tmp_path / "plan.png"
    plots.draw(comparison, speedups(comparison, NoProgress()), words, file)
    assert file.stat().st_size > 10_000


def test_a_plot_needs_a_known_format() -> None:
    with pytest.raises(InputError, match="must end in"):
        plots.require_matplotlib(Path("plan.bmp"))
