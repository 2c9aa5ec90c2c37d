"""The command line of the job. Nothing heavy is imported here: it runs before MPI starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from edgeflow_mpi import __version__
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.kernels.names import AUTO, ENGINES, NARROW, PRECISIONS

DEFAULT_MODEL = "torchvision:resnet50"
PARTITIONERS = (
    "joint", "lp", "exact", "equal", "proportional", "gather", "fused", "aofl", "layers", "single",
    "one-shot", "random",
)  # fmt: skip
"""Those of :mod:`edgeflow_mpi.partition.search`, which takes too long to import."""
PLAN_SECONDS = 10.0
_PLANNING = ("--partitioner", "--plan-seconds", "--plan-simulations")


@dataclass(frozen=True)
class Options:
    """What the user asked for; field by field the options of :func:`parse_options`."""

    model: str
    weights: Path | None
    input_shapes: tuple[str, ...]
    inputs: tuple[Path, ...]
    input_dtype: str
    wire: str
    output: Path | None
    partitioner: str
    plan_seconds: float
    plan_simulations: int | None
    profile: Path | None
    save_profile: Path | None
    plan: Path | None
    save_plan: Path | None
    repeat: int
    warmup: int
    baseline: bool
    verify: bool
    verify_layers: bool
    plant_fault: str | None
    json: Path | None
    threads: int | None
    seed: int
    cache: Path | None
    caching: bool
    remeasure: bool
    timeout_s: float
    quiet: bool
    engine: str = AUTO
    precision: str = "fp32"
    emulate: Path | None = None
    emulate_units: str = "kernels"
    emulate_compute: str = "first"
    profile_from_cluster: bool = False
    links_from_cluster: bool = False
    in_flight: int = 1
    wait: str = "auto"
    progress_thread: str = "auto"
    breakdown: bool = False


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that one rank can say it for all."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see python -m edgeflow_mpi.run --help)")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


for _type, _name in ((_count, "count"), (_positive, "number"), (_seconds, "number of seconds")):
    _type.__name__ = _name  # argparse shows it in "invalid ... value"


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m edgeflow_mpi.run",
        description="Answer requests with one vision model divided among the ranks of an MPI job.",
        epilog="Example: mpirun -hostfile edges.txt python -m edgeflow_mpi.run --verify",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edgeflow_mpi {__version__}")
    what = parser.add_argument_group("model and data (read on rank 0 only)")
    what.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="MODEL",
        help="torchvision:NAME, FILE.pt2 (a torch.export program), or package.module:factory "
        "(default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="safetensors, or a torch state dict; without it torchvision models have random "
        "weights, calibrated so that the answer depends on the input",
    )  # fmt: skip
    what.add_argument(
        "--input-shape", action="append", default=[], metavar="SHAPE", dest="input_shapes",
        help="such as 1,3,224,224 or 1,16:int64; once for each input of the model",
    )  # fmt: skip
    what.add_argument(
        "--input", type=Path, nargs="+", default=[], metavar="FILE", dest="inputs",
        help="image files, a folder of images, .npy or .npz (default: a photograph)",
    )  # fmt: skip
    what.add_argument(
        "--input-dtype", default="auto", choices=("auto", "uint8", "float32"),
        help="how an image travels: as pixels, normalised where they are used (a quarter of the "
        "bytes, the same answer), or normalised; auto: pixels for image files",
    )  # fmt: skip
    what.add_argument(
        "--wire", default="fp32", choices=("fp32", "fp16", "bf16"),
        help="type in which activations travel between ranks; --verify tells what a narrower "
        "one costs in accuracy (default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--precision", default="fp32", choices=tuple(PRECISIONS),
        help="bf16: layers may multiply bfloat16 numbers, where the processor can and that was "
        "measured to be faster; --verify tells what it costs in accuracy (default: %(default)s)",
    )  # fmt: skip
    what.add_argument("--output", type=Path, metavar="FILE.npz", help="save the answer tensors")
    what.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of random weights and of planners"
    )
    how = parser.add_argument_group("plan")
    how.add_argument(
        "--partitioner", choices=PARTITIONERS,
        help=f"how rows are divided (default: {PARTITIONERS[0]})",
    )  # fmt: skip
    how.add_argument(
        "--plan-seconds", type=_seconds, metavar="S",
        help=f"how long the joint partitioner may search at most (default: {PLAN_SECONDS:g} s)",
    )  # fmt: skip
    how.add_argument(
        "--plan-simulations", type=_positive, metavar="N",
        help="search for so many evaluations of a plan instead: the same plan every time",
    )  # fmt: skip
    how.add_argument(
        "--profile", type=Path, metavar="FILE.yaml", help="use this profile; measure nothing"
    )
    how.add_argument("--save-profile", type=Path, metavar="FILE.yaml", help="keep the profile")
    how.add_argument("--plan", type=Path, metavar="FILE", help="run these saved unit tables")
    how.add_argument("--save-plan", type=Path, metavar="FILE", help="keep the unit tables as text")
    how.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="where captured models, profiles and plans are kept between runs, at most 2 GiB of "
        "each; safe to delete, and to share among jobs (default: edgeflow_mpi in the user's cache "
        "folder)",
    )  # fmt: skip
    how.add_argument(
        "--no-cache", action="store_false", dest="caching",
        help="use nothing of earlier runs, and keep nothing for later ones",
    )  # fmt: skip
    how.add_argument(
        "--remeasure", action="store_true",
        help="measure and plan anew, whatever the cache has",
    )  # fmt: skip
    run = parser.add_argument_group("run")
    run.add_argument("--repeat", type=_positive, default=10, metavar="N", help="timed requests")
    run.add_argument("--warmup", type=_count, default=2, metavar="N", help="untimed requests first")
    run.add_argument(
        "--engine", default=AUTO, choices=(AUTO, *(name for name in ENGINES if name not in NARROW)),
        help="what computes: the fastest for every layer, found out by measuring, or one engine "
        "for all layers that it can do (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--threads", type=_positive, metavar="N",
        help="threads of every rank (default: its share of the cores of its host)",
    )  # fmt: skip
    run.add_argument(
        "--no-baseline", action="store_false", dest="baseline",
        help="do not measure the best single device for comparison",
    )  # fmt: skip
    run.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", dest="timeout_s",
        help="give up when nothing has arrived for so long (default: %(default)s s)",
    )  # fmt: skip
    run.add_argument(
        "--in-flight", type=_positive, default=1, metavar="K",
        help="requests under way at once: more answers a second, each of them later "
        "(default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--wait", default="auto", choices=("auto", "spin", "yield", "sleep"),
        help="how ranks wait for messages: poll without a pause, yield the core between polls, "
        "or sleep; auto: by whether they share cores",
    )  # fmt: skip
    run.add_argument(
        "--progress-thread", default="auto", choices=("auto", "on", "off"),
        help="whether a thread moves messages over TCP while a rank computes (Open MPI); auto: "
        "where the ranks are on several hosts",
    )  # fmt: skip
    slow = parser.add_argument_group("slow devices on a fast machine (launch/testbed)")
    slow.add_argument(
        "--emulate", type=Path, metavar="CLUSTER.yaml",
        help="rank i computes as slowly as device i of this cluster file; one thread each",
    )  # fmt: skip
    slow.add_argument(
        "--emulate-units", default="kernels", choices=("kernels", "stated"),
        help="what a unit takes: its kernel's time here, stretched by one factor for each device, "
        "or what the file says for its multiply-adds (default: %(default)s)",
    )  # fmt: skip
    slow.add_argument(
        "--emulate-compute", default="first", choices=("first", "every"),
        help="in which requests units really compute: only in the first, which leaves the machine "
        "to messages, as long as all are of one input, or in every one (default: %(default)s)",
    )  # fmt: skip
    slow.add_argument(
        "--profile-from-cluster", action="store_true",
        help="plan with what the file of --emulate says of devices and links; measure neither",
    )  # fmt: skip
    slow.add_argument(
        "--links-from-cluster", action="store_true",
        help="plan with what the file of --emulate says of links, and with units' own times",
    )  # fmt: skip
    check = parser.add_argument_group("check and report")
    check.add_argument(
        "--verify", action="store_true",
        help="compare with the undivided model in plain torch (float64); fail if it differs",
    )  # fmt: skip
    check.add_argument(
        "--verify-layers", action="store_true",
        help="compare after every layer as well, and name the first that differs",
    )  # fmt: skip
    check.add_argument(
        "--plant-fault", metavar="LAYER",
        help="zero one halo row that LAYER receives (or 'any'), to see that --verify fails then",
    )  # fmt: skip
    check.add_argument(
        "--breakdown", action="store_true",
        help="where the time of every rank and unit goes: kernel, copies, messages, dispatch, "
        "waiting",
    )  # fmt: skip
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    check.add_argument("--quiet", action="store_true", help="no progress, only the result")
    return parser


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line.

    Raises
    ------
    InputError
        If it is not understood; the sentence says which part.
    SystemExit
        After ``--help`` and ``--version``.
    """
    values = vars(build_parser().parse_args(argv))
    values["input_shapes"] = tuple(values["input_shapes"])
    values["inputs"] = tuple(values["inputs"])
    if values["plan"] is not None:
        given = [name for name in _PLANNING if values[name[2:].replace("-", "_")] is not None]
        if given:
            raise InputError(
                f"--plan runs a plan that is made already, and {given[0]} is about making one: "
                "leave one out"
            )
    if values["precision"] != "fp32":
        for name, usual in (("engine", AUTO), ("plan", None), ("emulate", None)):
            if values[name] != usual:
                raise InputError(
                    f"--precision is about choosing among engines, which --{name} leaves no room "
                    "for: leave one out"
                )
    values["partitioner"] = values["partitioner"] or PARTITIONERS[0]
    values["plan_seconds"] = values["plan_seconds"] or PLAN_SECONDS
    if values["profile"] is not None and values["remeasure"]:
        raise InputError("--profile means not to measure and --remeasure to measure: leave one out")
    if values["cache"] is not None and not values["caching"]:
        raise InputError("--cache and --no-cache contradict each other: leave one out")
    for name in ("profile_from_cluster", "links_from_cluster"):
        option = "--" + name.replace("_", "-")
        if values["emulate"] is None and values[name]:
            raise InputError(f"{option} is about the file of --emulate, which is missing")
        if values[name] and values["profile"] is not None:
            raise InputError(f"--profile and {option} are two profiles: leave one out")
    if values["emulate"] is not None:
        if values["threads"] not in (None, 1):
            raise InputError(
                "an emulated device computes with one thread, as it is that thread's time that is "
                "stretched: leave out --threads"
            )
        values["threads"] = 1
    # A wrong answer must not pass for a right one.
    values["verify"] |= values["verify_layers"] or values["plant_fault"] is not None
    return Options(**values)
