"""Row rules: for each operator, which rows it needs and how to compute just some.

One module per family. :func:`rule_for` is the whole interface: an operator that it does
not know runs undivided on one rank, so every model that exports runs.
"""

from __future__ import annotations

from functools import cache

from edgeflow_mpi.graph.rules.base import Call, Compute, Rule, Weights, whole
from edgeflow_mpi.graph.rules.pointwise import Elementwise, is_elementwise, pointwise_rules
from edgeflow_mpi.graph.rules.resize import resize_rules
from edgeflow_mpi.graph.rules.shape import shape_rules
from edgeflow_mpi.graph.rules.window import window_rules

__all__ = ["Call", "Compute", "Rule", "Weights", "rule_for", "whole"]

_RULES: dict[str, Rule] = {
    **window_rules(),
    **pointwise_rules(),
    **shape_rules(),
    **resize_rules(),
}


@cache
def rule_for(target: str) -> Rule | None:
    """The row rule of operator ``target``, or None where it has none."""
    if target in _RULES:
        return _RULES[target]
    return Elementwise() if is_elementwise(target) else None
