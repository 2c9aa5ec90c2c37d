"""Processors, as far as code must know them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from llvmlite import binding


@dataclass(frozen=True)
class Machine:
    """What code is made for.

    Attributes
    ----------
    cpu, features : str
        LLVM's names of the processor and of what it can do.
    lanes : int
        float32 in a vector register.
    panel_vectors : int
        Vectors of output channels in one panel of weights.
    panel_tiles : int
        Most tiles that are multiplied with a panel at a time: as many sums as there are
        registers for, beside a row of the panel and one sample.
    """

    cpu: str
    features: str
    lanes: int
    panel_vectors: int
    panel_tiles: int

    @property
    def panel(self) -> int:
        """Output channels of one panel of weights."""
        return self.lanes * self.panel_vectors


@cache
def native() -> Machine | None:
    """What this processor is to the code, if anything: it must have fused multiply-add."""
    features = binding.get_host_cpu_features()
    cpu, described = binding.get_host_cpu_name(), features.flatten()
    return suited(cpu, described, frozenset(name for name, there in features.items() if there))


def suited(cpu: str, described: str, features: frozenset[str]) -> Machine | None:
    """The machine of a processor with these features, by LLVM's names of them."""
    if {"avx512f", "avx512vl"} <= features:
        return Machine(cpu, described, lanes=16, panel_vectors=2, panel_tiles=10)
    if {"avx2", "fma"} <= features:
        return Machine(cpu, described, lanes=8, panel_vectors=2, panel_tiles=6)
    if "neon" in features:
        return Machine(cpu, described, lanes=4, panel_vectors=4, panel_tiles=5)
    return None
