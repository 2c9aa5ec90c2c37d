"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Sequence

_KILO = 1000


def ms(seconds: float) -> str:
    """A time in milliseconds, with three significant digits or all before the point."""
    value = seconds * 1e3
    if value >= 99.95 or value == 0:
        return f"{value:,.0f} ms"
    return f"{value:.1f} ms" if value >= 1 else f"{value:.3g} ms"


def times(factor: float) -> str:
    """A factor, with enough digits that it never reads 1.0 when it is not 1."""
    if factor >= 99.95:
        return f"{factor:,.0f}×"
    if factor < 0.095:
        return f"{factor:.1g}×"
    return f"{factor:.1f}×" if factor >= 1.1 or factor < 0.95 else f"{factor:.2f}×"


def percent(share: float) -> str:
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"


def size(count: float) -> str:
    """Bytes, in powers of a thousand."""
    for unit in ("B", "kB", "MB"):
        if count < _KILO:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= _KILO
    return f"{count:.1f} GB"


def rate(bandwidth_bytes_s: float) -> str:
    """A bandwidth in bits a second."""
    mbps = bandwidth_bytes_s * 8e-6
    if mbps >= 10_000:
        return f"{rounded(mbps / 1000)} Gbit/s"
    return f"{rounded(mbps)} Mbit/s"


def rounded(value: float) -> str:
    """Two significant digits, three from a hundred up."""
    if value >= 100:
        return f"{value:,.0f}" if value < 1000 else f"{round(value, 3 - len(str(int(value)))):,.0f}"
    return f"{value:.2g}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """``a, b and c``; only some of them, and how many more, where there are too many."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(
    head: Sequence[str], body: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)
) -> list[str]:
    """Aligned columns; those in ``left`` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *body)
    ]
