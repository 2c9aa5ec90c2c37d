"""The results as a picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.engines.contenders import APART, LABELS, OURS, SYSTEMS
from bench.engines.results import Entry, best_engine, median_ms, times_ms
from edgeflow_mpi.report.files import write_file

_COLOURS = {
    OURS: "#d9480f",
    "onnxruntime": "#0b7285",
    "openvino": "#1098ad",
    "ncnn": "#2b8a3e",
    "mnn": "#74b816",
    "torch": "#868e96",
    "torch-compile": "#495057",
}
_HIGHEST = 3.0
_GROUP = 0.84


def draw(models: Mapping[str, Entry], path: Path) -> None:
    """Latency over that of the best engine: models side by side, one and two cores below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    figure, axes = plt.subplots(2, 1, figsize=(10, 7.2), sharex=True, layout="constrained")
    there = {name.rpartition("-")[0] for each in models.values() for name in each["contenders"]}
    shown = [system for system in SYSTEMS if system in there - {APART}]
    width = _GROUP / len(shown)
    for cores, axis in zip((1, 2), axes, strict=True):
        for place, system in enumerate(shown):
            for index, entry in enumerate(models.values()):
                name, best = f"{system}-{cores}", best_engine(entry, cores)
                if name not in entry["contenders"] or best is None:
                    continue
                unit = median_ms(entry, best)
                low, middle, high = np.percentile(times_ms(entry, name), (25, 50, 75)) / unit
                x = index + (place - (len(shown) - 1) / 2) * width
                axis.bar(x, min(middle, _HIGHEST), width * 0.92, color=_COLOURS[system])
                axis.plot((x, x), np.minimum((low, high), _HIGHEST), color="#22272e", linewidth=1)
                figures = f"{middle * unit:.{0 if middle * unit >= 99.5 else 1}f}"
                axis.text(
                    x, min(high, _HIGHEST) + 0.03, figures,
                    ha="center", va="bottom", fontsize=7, color="#22272e", rotation=90,
                )  # fmt: skip
        axis.axhline(1, color="#22272e", linewidth=0.8, linestyle=":")
        axis.set_ylim(0, _HIGHEST + 0.45)
        threads = "1 thread, or 1 rank" if cores == 1 else "2 threads, or 2 ranks of 1 thread"
        axis.set_ylabel(f"time / best engine\n({threads})")
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xticks(range(len(models)), list(models))
    handles = [Patch(color=_COLOURS[s]) for s in shown]
    figure.legend(
        handles, [LABELS[s] for s in shown], loc="outside upper center", ncols=len(shown),
        frameon=False,
    )  # fmt: skip
    figure.supxlabel(
        "Figures are medians in milliseconds; lines on the bars, quartiles.", fontsize=8
    )
    kind = path.suffix.lstrip(".")
    write_file(path, "the plot", lambda file: figure.savefig(file, format=kind, dpi=130))
    plt.close(figure)
