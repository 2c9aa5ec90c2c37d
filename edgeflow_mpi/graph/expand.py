"""Composite operators written out in operators that have row rules.

Many operators are only names for a few others (``concat``, ``cosine_similarity``,
``rms_norm``). Where all of those have row rules and this one has none, it is traced once
more, so that what torch would do anyway can be done by rows.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import make_fx

from edgeflow_mpi.graph.rules import rule_for

_MOST_CALLS = 16
_PLUMBING = ("aten.view.default", "aten._unsafe_view.default", "aten.alias.default",
             "aten.detach.default", "aten.clone.default")  # fmt: skip


def expansion(node: torch.fx.Node) -> torch.fx.Graph | None:
    """A graph of the same value in other operators, or None where that gains nothing.

    Its placeholders stand for ``node.all_input_nodes``, in order.
    """
    function: Any = node.target
    if not isinstance(function, torch._ops.OpOverload) or rule_for(str(function)) is not None:
        return None
    if not function.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return None
    inputs = node.all_input_nodes
    tensors = [given.meta.get("val") for given in inputs]
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        return None

    def call(*values: torch.Tensor) -> Any:
        known = dict(zip(inputs, values, strict=True))
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        return function(*args, **kwargs)

    with torch.no_grad(), detect_fake_mode(tensors) or contextlib.nullcontext():
        traced = make_fx(torch.func.functionalize(call))(*tensors).graph
    traced.eliminate_dead_code()
    calls = [inner for inner in traced.nodes if inner.op == "call_function"]
    known = all(_has_rule(str(inner.target)) for inner in calls)
    return traced if known and len(calls) <= _MOST_CALLS else None


def _has_rule(target: str) -> bool:
    return rule_for(target) is not None or target in _PLUMBING
