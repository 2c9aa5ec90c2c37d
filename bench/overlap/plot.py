"""The measured cases as a picture."""

from __future__ import annotations

from pathlib import Path

from bench.overlap.page import TITLES, usual
from bench.overlap.results import Results
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.plots import require_matplotlib

_INK, _HIDDEN, _EXPOSED, _SAVED = "#22272e", "#ced4da", "#e8590c", "#74b3bf"
_SETTINGS = [name for name in TITLES if name.startswith("testbed")]


def draw(results: Results, path: Path) -> None:
    """Every plan's latency on emulated hosts, in shares of what it would be with all hidden.

    Raises
    ------
    InputError
        Without matplotlib, or where the file cannot be written.
    """
    require_matplotlib(path)
    from matplotlib.figure import Figure

    found = [
        (setting, case, plan)
        for setting in _SETTINGS
        for case in usual(results)
        if case.setting == setting
        for plan in case.plans
    ]
    figure = Figure(figsize=(9, 1.2 + 0.34 * max(len(found), 1)), layout="constrained")
    axes = figure.subplots()
    labels = []
    for place, (setting, case, plan) in enumerate(found):
        base = plan.hidden_ms
        measured, blocking = plan.measured_ms / base, plan.without_ms / base
        axes.barh(place, 1.0, color=_HIDDEN)
        axes.barh(place, measured - 1, left=1.0, color=_EXPOSED)
        axes.barh(place, blocking - measured, left=measured, color=_SAVED)
        axes.annotate(
            f"{100 * plan.inner.hidden:.0f} % hidden; {plan.measured_ms:.0f} ms, "
            f"{plan.without_ms:.0f} ms blocking",
            (max(blocking, measured), place), (4, 0), textcoords="offset points", va="center",
            fontsize=8, color=_INK,
        )  # fmt: skip
        labels.append(f"{case.model}, {plan.name}, {setting.removeprefix('testbed-')} hosts")
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.invert_yaxis()
    widest = max((plan.without_ms / plan.hidden_ms for _, _, plan in found), default=1.0)
    axes.set_xlim(0, 1.45 * widest)
    axes.set_xlabel("latency over that with all messages hidden (emulated hosts, 93.7 Mbit/s)")
    for label, colour in (
        ("all messages hidden", _HIDDEN), ("what messages cost, measured", _EXPOSED),
        ("what overlap saves: blocking, measured", _SAVED),
    ):  # fmt: skip
        axes.bar(0, 0, color=colour, label=label)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    write_file(path, "the picture", lambda file: figure.savefig(file, dpi=130, format="png"))
