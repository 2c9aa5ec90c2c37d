"""A profile as a YAML file: written for people to read, checked when read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeflow_mpi.cache import write_atomic
from edgeflow_mpi.cluster.profile import Device, LayerCost, Link, Profile
from edgeflow_mpi.cluster.yaml_fields import Field
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.division import How
from edgeflow_mpi.graph.types import Graph, Origin

FORMAT = 1
_WAYS: tuple[How, ...] = ("outputs", "inputs")

_HEADER = """\
# What {model} costs on these devices, and how fast their links are.
# Reuse it with --profile FILE: the same model, input shape and devices are required.
"""
_DEVICES = """\
# In the order of ranks when it was measured. memory_mb (10^6 bytes) is what a plan may use;
# stretch is how much longer everything took because ranks on one host shared its cores;
# message_us, 0 unless given, is how long a message keeps its sender and its receiver busy.
"""
_LINKS = """\
# A message of b bytes takes latency_ms / 1000 + 8 b / (10^6 bandwidth_mbps) seconds.
# With network: shared (switched unless given) messages take turns on one medium.
"""
_LAYERS = """\
# Computing r rows takes fixed_us + per_row_us r, fitted to the points [rows, microseconds].
# engines, if given, names for each point the engine that was the fastest.
# Layers with the same signature have the same shapes and were measured once. Where a layer is
# divided by outputs, its rows are output channels, each with its part of the weights; by inputs,
# they are rows or channels of what it multiplies.
"""


def save_profile(profile: Profile, path: Path, *, graph: Graph) -> None:
    """Write ``profile`` to ``path``, entirely or not at all.

    Raises
    ------
    ProfileError
        When the file cannot be written.
    """
    try:
        write_atomic(path, profile_text(profile, graph))
    except OSError as error:
        raise ProfileError(f"the profile {path} cannot be written: {error.strerror}") from None


def load_profile(path: Path, *, graph: Graph, devices: Sequence[Device] | None = None) -> Profile:
    """The profile in ``path``, for a job that runs ``graph`` on ``devices``.

    Its devices are brought into the order of ``devices``, or left in their own where that is
    None; what the file says about their memory stands.

    Raises
    ------
    ProfileError
        With one sentence, when the file is missing or malformed, or was measured for
        another model, input shape or set of devices.
    """
    return _read(Field.of_file(path, "profile"), graph, devices)


def parse_profile(
    text: str, name: str, *, graph: Graph, devices: Sequence[Device] | None = None
) -> Profile:
    """As :func:`load_profile`, from a text that complaints call ``name``."""
    return _read(Field.of_text(text, name), graph, devices)


def profile_text(profile: Profile, graph: Graph) -> str:
    """The YAML form of ``profile``; numbers have six significant digits."""
    names = [device.name for device in profile.devices]
    stretches = profile.stretches or (1.0,) * len(names)
    messages_s = profile.message_cpu_s or (0.0,) * len(names)
    lines = [
        _HEADER.format(model=profile.model).rstrip(),
        f"format: {FORMAT}",
        f"model: {_quoted(profile.model)}",
        f"fingerprint: {_quoted(profile.fingerprint)}",
        f"created: {_quoted(profile.created or 'unknown')}",
        f"versions: {_flow({name: _quoted(text) for name, text in profile.versions})}",
        "",
        _DEVICES.rstrip(),
        "devices:",
        *(
            f"- {_flow(_device_fields(device, stretch, message_s))}"
            for device, stretch, message_s in zip(
                profile.devices, stretches, messages_s, strict=True
            )
        ),
        "",
        _LINKS.rstrip(),
        *([f"network: {profile.network}"] if profile.network != "switched" else []),
        "links:" if profile.links else "links: []",
    ]
    for (i, j), link in sorted(profile.links.items()):
        fields = {
            "from": _quoted(names[i]),
            "to": _quoted(names[j]),
            "latency_ms": _number(link.latency_s * 1e3),
            "bandwidth_mbps": _number(link.bandwidth_bytes_s * 8e-6),
        }
        lines.append(f"- {_flow(fields)}")
    signatures = _signatures(graph)
    lines += ["", _LAYERS.rstrip(), "layers:" if signatures else "layers: []"]
    for signature, layers in signatures.items():
        more = f"  # and {len(layers) - 1} more" if len(layers) > 1 else ""
        lines.append(f"- layer: {_quoted(layers[0])}{more}")
        lines.append(f"  signature: {_quoted(signature)}")
        lines.append("  devices:")
        for name, costs in zip(names, profile.costs, strict=True):
            lines.append(f"    {_quoted(name)}: {_flow(_cost_fields(costs[signature]))}")
    for signature, (name, how) in _shares(graph).items():
        if all(signature in costs for costs in profile.costs):
            lines.append(f"- layer: {_quoted(name)}")
            lines.append(f"  divided: {how}")
            lines.append(f"  signature: {_quoted(signature)}")
            lines.append("  devices:")
            for device, costs in zip(names, profile.costs, strict=True):
                lines.append(f"    {_quoted(device)}: {_flow(_cost_fields(costs[signature]))}")
    return "\n".join(lines) + "\n"


def _shares(graph: Graph) -> dict[str, tuple[str, How]]:
    """Signature of a layer's parts -> the first layer that has it, and what they are parts of."""
    return {
        Origin(signature, graph.by_name[layers[0]].rows, how).derived: (layers[0], how)
        for signature, layers in _signatures(graph).items()
        for how in _WAYS
    }


def _signatures(graph: Graph) -> dict[str, list[str]]:
    """Signature -> the compute layers that have it, in layer order."""
    found: dict[str, list[str]] = {}
    for layer in graph.layers:
        if layer.kind == "compute":
            found.setdefault(graph.signatures[layer.name], []).append(layer.name)
    return found


def _device_fields(device: Device, stretch: float, message_s: float) -> dict[str, str]:
    fields = {
        "name": _quoted(device.name),
        "host": _quoted(device.host or device.name),
        "cpu": _quoted(device.cpu or "unknown"),
        "threads": str(device.threads),
        "memory_mb": str(device.memory_bytes // 10**6),
        "stretch": _number(stretch),
    }
    if message_s:
        fields["message_us"] = _number(message_s * 1e6)
    return fields


def _cost_fields(cost: LayerCost) -> dict[str, str]:
    points = ", ".join(f"[{rows}, {_number(seconds * 1e6)}]" for rows, seconds in cost.points)
    return {
        "fixed_us": _number(cost.fixed_s * 1e6),
        "per_row_us": _number(cost.per_row_s * 1e6),
        "points": f"[{points}]",
        **({"engines": f"[{', '.join(cost.engines)}]"} if cost.engines else {}),
    }


def _flow(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {text}" for key, text in fields.items()) + "}"


def _quoted(text: str) -> str:
    # A JSON string is a YAML string, and is never taken for a number or a date.
    return json.dumps(text)


def _number(value: float) -> str:
    text = f"{value:.6g}"
    if "e" in text and "." not in text:  # YAML 1.1 takes 1e-05 for a string
        text = text.replace("e", ".0e")
    return text


def _read(content: Field, graph: Graph, devices: Sequence[Device] | None) -> Profile:
    top = content.mapping(
        "format", "model", "fingerprint", "created", "versions", "devices", "links", "layers",
        optional=("network",),
    )  # fmt: skip
    if top["format"].integer(1) != FORMAT:
        top["format"].fail(f"is {top['format'].value}, this version reads {FORMAT}")
    _check_model(content.file, top["model"].text(), top["fingerprint"].text(), graph)
    read = [_read_device(item) for item in top["devices"].items("a list of devices")]
    if not read:
        top["devices"].fail("is empty, it must have at least one device")
    found = [device for device, _, _ in read]
    devices = found if devices is None else devices
    _check_devices(content.file, found, devices)
    by_name = {device.name: (device, stretch, message_s) for device, stretch, message_s in read}
    names = [device.name for device in devices]
    messages_s = tuple(by_name[name][2] for name in names)
    versions = top["versions"].named("a mapping from package to version")
    return Profile(
        model=graph.name,
        fingerprint=graph.fingerprint,
        devices=tuple(by_name[name][0] for name in names),
        costs=_read_layers(top["layers"], names, graph),
        links=_read_links(top["links"], names),
        stretches=tuple(by_name[name][1] for name in names),
        created=top["created"].text(),
        versions=tuple((name, field.text()) for name, field in versions.items()),
        network="shared" if "network" in top and _is_shared(top["network"]) else "switched",
        message_cpu_s=messages_s if any(messages_s) else (),
    )


def _check_model(file: str, model: str, fingerprint: str, graph: Graph) -> None:
    if fingerprint == graph.fingerprint:
        return
    if model != graph.name:
        raise ProfileError(
            f"{file} is of {model}, but this job runs {graph.name}: measure without it"
        )
    raise ProfileError(
        f"{file} is of {model} with another input shape or in another version "
        f"(fingerprint {fingerprint}, here {graph.fingerprint}): measure without it"
    )


def _check_devices(file: str, found: Sequence[Device], wanted: Sequence[Device]) -> None:
    there = {device.name: device for device in found}
    if len(there) != len(found):
        raise ProfileError(f"{file}: devices has the same name twice, names must be unique")
    if len(found) != len(wanted):
        raise ProfileError(
            f"{file} is of {len(found)} devices, but this job has {len(wanted)}: "
            "run on as many, or measure without it"
        )
    absent = [device.name for device in wanted if device.name not in there]
    if absent:
        raise ProfileError(
            f"{file} is of the devices {', '.join(there)}, {', '.join(absent)} of this job "
            f"{'are' if len(absent) > 1 else 'is'} not among them: measure without it"
        )
    for device in wanted:
        threads = there[device.name].threads
        if threads != device.threads:
            raise ProfileError(
                f"{file} is of {device.name} with {threads} threads, but this job uses "
                f"{device.threads} there: run with --threads {threads}, or measure without it"
            )


def _is_shared(network: Field) -> bool:
    return network.choice(("switched", "shared")) == "shared"


def _read_device(item: Field) -> tuple[Device, float, float]:
    """The device, its stretch, and the seconds that a message keeps it busy."""
    fields = item.mapping(
        "name", "host", "cpu", "threads", "memory_mb", "stretch", optional=("message_us",)
    )
    if fields["stretch"].number() < 1:
        fields["stretch"].fail(f"is {fields['stretch'].value}, it must be at least 1")
    device = Device(
        name=fields["name"].text(),
        threads=fields["threads"].integer(1),
        memory_bytes=fields["memory_mb"].integer(1) * 10**6,
        host=fields["host"].text(),
        cpu=fields["cpu"].text(),
    )
    message_us = fields["message_us"].number() if "message_us" in fields else 0.0
    return device, fields["stretch"].number(), message_us / 1e6


def _read_links(links: Field, names: Sequence[str]) -> dict[tuple[int, int], Link]:
    rank = {name: i for i, name in enumerate(names)}
    read: dict[tuple[int, int], Link] = {}
    for item in links.items("a list of links"):
        fields = item.mapping("from", "to", "latency_ms", "bandwidth_mbps")
        for end in ("from", "to"):
            fields[end].choice(names)
        pair = rank[fields["from"].text()], rank[fields["to"].text()]
        if pair in read or pair[0] == pair[1]:
            fault = "given twice" if pair in read else "a device with itself"
            item.fail(f"is {fault}, every ordered pair of devices must be there once")
        read[pair] = Link(
            fields["latency_ms"].number() / 1e3,
            fields["bandwidth_mbps"].number(positive=True) / 8e-6,
        )
    for i, sender in enumerate(names):
        for j, receiver in enumerate(names):
            if i != j and (i, j) not in read:
                links.fail(f"lacks the link from {sender} to {receiver}")
    return dict(sorted(read.items()))


def _read_layers(
    layers: Field, names: Sequence[str], graph: Graph
) -> tuple[Mapping[str, LayerCost], ...]:
    needed, shares = _signatures(graph), _shares(graph)
    costs: tuple[dict[str, LayerCost], ...] = tuple({} for _ in names)
    for item in layers.items("a list of layers"):
        fields = item.mapping("layer", "signature", "devices", optional=("divided",))
        signature = fields["signature"].text()
        how = fields["divided"].choice(_WAYS) if "divided" in fields else None
        if signature not in needed if how is None else shares.get(signature, ("", ""))[1] != how:
            fields["signature"].fail(f"is {signature!r}, which no layer of {graph.name} has")
        if signature in costs[0]:
            fields["signature"].fail(f"is {signature!r} for a second time")
        for device, field in fields["devices"].mapping(*names).items():
            costs[names.index(device)][signature] = _read_cost(field)
    for signature, layer_names in needed.items():
        if signature not in costs[0]:
            layers.fail(f"lacks layer {layer_names[0]} (signature {signature})")
    return costs


def _read_cost(item: Field) -> LayerCost:
    fields = item.mapping("fixed_us", "per_row_us", "points", optional=("engines",))
    points: list[tuple[int, float]] = []
    for point in fields["points"].items("a list of [rows, microseconds]"):
        rows, micros = point.items("a pair [rows, microseconds]", length=2)
        points.append((rows.integer(1), micros.number(positive=True) / 1e6))
    engines: tuple[str, ...] = ()
    if "engines" in fields:
        named = fields["engines"].items("a list of engines, one for each point", length=len(points))
        engines = tuple(name.text() for name in named)
    return LayerCost(
        fields["fixed_us"].number() / 1e6,
        fields["per_row_us"].number() / 1e6,
        tuple(points),
        engines,
    )
