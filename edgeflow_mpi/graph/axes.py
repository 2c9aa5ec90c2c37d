"""Which axis of every tensor is divided: asked for from behind, then handed on from the front.

A convolution divides the rows of its map, wherever they come from: an image that arrives
with its channels last, or a signal that becomes a map on the way, is divided along the
dimension that ends up as those rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeflow_mpi.graph.draft import Draft, DraftGraph
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.types import In, Step, TensorSpec

_SPATIAL = ("conv", "max_pool", "avg_pool", "adaptive_", "upsample", "_upsample", "pixel_")
_CARRIES = (
    "aten.cat.default",
    "aten.stack.default",
    "aten.linear.default",
    "aten.layer_norm.default",
)
_ROWS = 2
"""Dimension of the rows in what a spatial operator reads, whatever the dimensions of its map."""


def assign_axes(graph: DraftGraph) -> None:
    """Give every draft its split axis and tell which layers are divisible.

    Drafts must be of one step each. The result of an operator without a row rule, and a
    request tensor, get the axis that their readers would like, so that their rows can be
    handed out one by one.
    """
    wanted = _wanted_axes(graph)
    for draft in list(graph.drafts.values()):
        axis = wanted.get(draft.name)
        if draft.kind == "input":
            maps = len(draft.out.shape) in (4, 5)
            _set(draft, _ROWS if axis is None and maps else axis)
            draft.divisible = False
        elif draft.kind == "output":
            draft.out = graph.drafts[draft.inputs[0]].out
            draft.rows = draft.out.rows
        else:
            own = _own_axis(graph, draft, axis)
            if own is None and _turns(graph, draft):
                own = _own_axis(graph, draft, axis)
            _set(draft, own if own is not None else axis)
            # What has no axis is one row; what has one that is not its rule's is whole.
            draft.divisible = own is not None or draft.out.axis is None


def _own_axis(graph: DraftGraph, draft: Draft, wanted: int | None) -> int | None:
    """The split axis that the operator's rule allows for the result."""
    rule, call = rule_for(draft.steps[0].target), graph.call(draft, 0)
    if rule is None or not call.operands:
        return None
    own = rule.axis(call)
    return wanted if own is None and wanted is not None and rule.gains(call, wanted) else own


def _turns(graph: DraftGraph, draft: Draft) -> bool:
    """Let a spatial operator read its map by rows, where it arrives divided otherwise.

    Dividing the map anew costs one gathering of it; what follows is divided.
    """
    rule, call = rule_for(draft.steps[0].target), graph.call(draft, 0)
    if rule is None or not _spatial(call.step.target):
        return False
    spec = call.operands[0]
    if spec.axis in (None, _ROWS):
        return False
    turned = TensorSpec(spec.shape, spec.dtype, _ROWS)
    if rule.axis(Call(call.step, (turned, *call.operands[1:]), call.weights)) is None:
        return False
    name = f"{draft.inputs[0]}_rows"
    if name not in graph.drafts:
        step = Step("aten.alias.default", (("self", In(0)),), turned)
        _insert(graph, Draft(name, "compute", draft.inputs[:1], [step], turned, turned.rows, False))
    draft.inputs = [name, *draft.inputs[1:]]
    return True


def _insert(graph: DraftGraph, draft: Draft) -> None:
    """Put a draft behind its only input."""
    drafts: dict[str, Draft] = {}
    for name, other in graph.drafts.items():
        drafts[name] = other
        if name == draft.inputs[0]:
            drafts[draft.name] = draft
    graph.drafts = drafts


def _spatial(target: str) -> bool:
    return target.startswith("aten.") and target.split(".")[1].startswith(_SPATIAL)


def _set(draft: Draft, axis: int | None) -> None:
    shape = draft.out.shape
    if axis is not None and shape[axis] == 0:
        axis = None
    draft.out = TensorSpec(shape, draft.out.dtype, axis)
    draft.rows = draft.out.rows
    draft.steps = [Step(step.target, step.args, draft.out, step.select) for step in draft.steps]


def _wanted_axes(graph: DraftGraph) -> Mapping[str, int]:
    """Draft name -> the dimension that its readers divide, as far as cheap operators tell."""
    wanted: dict[str, int] = {}
    for draft in reversed(graph.drafts.values()):
        if draft.kind != "compute" or not draft.inputs:
            continue
        for index, producer in enumerate(draft.inputs):
            axis = _asked_of(graph, draft, index, wanted.get(draft.name))
            if axis is not None:
                wanted[producer] = axis
    return wanted


def _asked_of(graph: DraftGraph, draft: Draft, index: int, made: int | None) -> int | None:
    """The dimension of an input that must be divided for ``made`` of the result to be."""
    step = draft.steps[0]
    shape = graph.drafts[draft.inputs[index]].out.shape
    if _spatial(step.target):
        if step.target == "aten.avg_pool3d.default" and len(shape) == 5 and shape[1] == 1:
            return _ROWS + 1  # a local response normalisation: it pools over channels
        return _ROWS if index == 0 and len(shape) > _ROWS else None
    rule = rule_for(step.target)
    if made is None or rule is None or not (rule.follows or step.target in _CARRIES):
        return None
    call = graph.call(draft, 0)
    for axis in range(len(shape)):
        # Operands of the same rank are divided alike; the others are there whole.
        operands = tuple(
            TensorSpec(spec.shape, spec.dtype, axis if len(spec.shape) == len(shape) else None)
            for spec in call.operands
        )
        if rule.axis(Call(step, operands, call.weights)) == made:
            return axis
    return None
