"""Graph rewrites: fold batch norm, fuse cheap operators; between them, sum in parts.

Each pass keeps every draft's value, and a fused layer keeps the name of the operator it
ends with, so values can be compared with the plain program by name.
"""

from __future__ import annotations

import torch

from edgeflow_mpi.graph.draft import Draft, DraftGraph, renumber
from edgeflow_mpi.graph.rules import rule_for
from edgeflow_mpi.graph.summands import sum_in_parts
from edgeflow_mpi.graph.types import Arg, In, Step, Var, Weight

_CONVOLUTIONS = tuple(f"aten.conv{n}d.{kind}" for n in (1, 2, 3) for kind in ("default", "padding"))
_NORMS = ("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default")
_HEAVY = ("conv", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product")


def fuse(graph: DraftGraph) -> None:
    """Run every pass once, in order."""
    _drop_dead(graph)
    _fold_batch_norm(graph)
    sum_in_parts(graph)
    _fuse_followers(graph)


def _drop_dead(graph: DraftGraph) -> None:
    """Remove layers that no output depends on; inputs stay, so requests keep their shape."""
    for name in reversed(list(graph.drafts)):
        draft = graph.drafts[name]
        if draft.kind == "compute" and not graph.consumers()[name]:
            del graph.drafts[name]


def _fold_batch_norm(graph: DraftGraph) -> None:
    """``conv`` then ``batch norm`` becomes one convolution with other weights."""
    consumers = graph.consumers()
    for name in list(graph.drafts):
        norm = graph.drafts[name]
        if len(norm.steps) != 1 or norm.steps[0].target not in _NORMS:
            continue
        if norm.steps[0].select not in (None, 0) or len(norm.inputs) != 1:
            continue
        if dict(norm.steps[0].args).get("training"):
            continue  # its statistics are those of the request
        conv = graph.drafts[norm.inputs[0]]
        if (
            len(conv.steps) == 1
            and conv.steps[0].target in _CONVOLUTIONS
            and consumers[conv.name] == [name]
            and isinstance(dict(conv.steps[0].args)["weight"], Weight)
        ):
            _replace_with_folded(graph, conv, norm)


def _replace_with_folded(graph: DraftGraph, conv: Draft, norm: Draft) -> None:
    values = dict(norm.steps[0].args)
    args = dict(conv.steps[0].args)

    def tensor(arg: Arg, default: float, like: torch.Tensor) -> torch.Tensor:
        if isinstance(arg, Weight):
            return graph.weights[arg.name].double()
        return torch.full_like(like, default, dtype=torch.float64)

    kernel = args["weight"]
    assert isinstance(kernel, Weight)
    mean_arg, eps = values["running_mean"], values["eps"]
    assert isinstance(mean_arg, Weight) and isinstance(eps, float)
    mean = graph.weights[mean_arg.name].double()
    variance = tensor(values["running_var"], 1.0, mean)
    scale = tensor(values["weight"], 1.0, mean) / torch.sqrt(variance + eps)
    old = graph.weights[kernel.name]
    bias = (tensor(args["bias"], 0.0, mean) - mean) * scale + tensor(values["bias"], 0.0, mean)
    folded = old.double() * scale.reshape(-1, *[1] * (old.dim() - 1))
    weight_name, bias_name = f"{norm.name}.weight", f"{norm.name}.bias"
    graph.weights[weight_name] = folded.to(old.dtype)
    graph.weights[bias_name] = bias.to(old.dtype)
    args["weight"], args["bias"] = Weight(weight_name), Weight(bias_name)
    step = Step(conv.steps[0].target, tuple(args.items()), norm.out)
    merged = Draft(norm.name, "compute", conv.inputs, [step], norm.out, norm.rows, conv.divisible)
    graph.drafts = {
        merged.name if key == norm.name else key: merged if key == norm.name else draft
        for key, draft in graph.drafts.items()
        if key != conv.name
    }


def _fuse_followers(graph: DraftGraph) -> None:
    """Append each cheap operator to the layer that produces its operand.

    Allowed where it is that tensor's only consumer. Of several such producers the last in
    order takes it, so that the others' results are there when the layer starts.
    """
    consumers = graph.consumers()
    position = {name: i for i, name in enumerate(graph.drafts)}
    for name in list(graph.drafts):
        draft = graph.drafts[name]
        if draft.kind != "compute" or not _follows(graph, draft):
            continue
        hosts = [
            graph.drafts[producer]
            for producer in draft.inputs
            if consumers[producer] == [name] and _can_host(graph.drafts[producer], draft)
        ]
        if not hosts:
            continue
        host = max(hosts, key=lambda d: position[d.name])
        merged = _merged(host, draft)
        position[name] = position.pop(host.name)
        # The merged layer stands where the follower stood: all its inputs come before.
        graph.drafts = {
            key: merged if key == name else d for key, d in graph.drafts.items() if key != host.name
        }
        position = {key: i for i, key in enumerate(graph.drafts)}
        for producer in merged.inputs:
            consumers[producer] = list(
                dict.fromkeys(name if c == host.name else c for c in consumers[producer])
            )
        del consumers[host.name]


def _follows(graph: DraftGraph, draft: Draft) -> bool:
    """Whether an operator is cheap enough to run behind whatever produces its operand."""
    if draft.combine or len(draft.steps) != 1:
        return False
    target = draft.steps[0].target
    rule = rule_for(target)
    if rule is not None and draft.divisible and draft.out.axis is not None:
        call = graph.call(draft, 0)
        rows = call.out.rows
        return rule.follows and all(
            spec.rows in (1, rows) or spec.axis is None for spec in call.operands
        )
    return not target.split(".")[1].startswith(_HEAVY)


def _can_host(host: Draft, follower: Draft) -> bool:
    """Whether the follower may run inside ``host``: both by rows alike, or both whole."""
    if host.kind != "compute" or host.combine:
        return False
    if host.divisible and host.rows > 1:
        return follower.divisible and follower.rows == host.rows and follower.out.axis is not None
    if host.rows == 1 and follower.rows == 1:
        return True
    # A divisible operator that reads another map as well must not be drawn into one place.
    return not host.divisible and (not follower.divisible or len(follower.inputs) == 1)


def _merged(host: Draft, follower: Draft) -> Draft:
    inputs = list(host.inputs)
    offset = len(host.steps)
    mapping: dict[int, Arg] = {}
    for index, producer in enumerate(follower.inputs):
        if producer == host.name:
            mapping[index] = Var(offset - 1)
        else:
            if producer not in inputs:
                inputs.append(producer)
            mapping[index] = In(inputs.index(producer))
    steps = list(host.steps)
    for step in follower.steps:
        args = tuple(
            (key, renumber(arg, mapping, {i: Var(i + offset) for i in range(len(steps))}))
            for key, arg in step.args
        )
        steps.append(Step(step.target, args, step.out, step.select))
    divisible = host.divisible and follower.divisible
    return Draft(
        follower.name, "compute", inputs, steps, follower.out, follower.out.rows, divisible
    )
