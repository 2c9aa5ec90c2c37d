"""What the system says about this host's processor: cores, limits, and who started us.

Every reader takes the root of the system's files as an argument, and none raises: what a system
does not say is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

_CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")

# Programs that start ranks and bind them: their own affinity is what the user gave the job.
# Slurm's is not among them, as what srun gives a task is what the task may use.
_LAUNCHERS = frozenset(
    (
        "hydra_pmi_proxy",
        "mpiexec",
        "mpiexec.hydra",
        "mpirun",
        "orted",
        "orterun",
        "prted",
        "prterun",
    )
)

PhysicalCore = tuple[int, ...]
"""The logical CPUs of one physical core, ascending; more than one under hyper-threading."""


def physical_cores(
    usable: Collection[int], siblings: Mapping[int, Collection[int]]
) -> tuple[PhysicalCore, ...]:
    """Group usable logical CPUs by physical core, in the order of their first CPU.

    A CPU that ``siblings`` does not know is a core of its own.
    """
    groups = {tuple(sorted({cpu, *siblings.get(cpu, ())} & set(usable))) for cpu in sorted(usable)}
    return tuple(sorted(groups))


def read_siblings(cpus: Collection[int], root: Path = _CPU_TOPOLOGY) -> dict[int, tuple[int, ...]]:
    """The logical CPUs of the physical core of each CPU that the system describes."""
    found = {}
    for cpu in cpus:
        try:
            text = (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
            found[cpu] = parse_cpu_list(text)
        except (OSError, ValueError):
            continue
    return found


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The CPUs of a Linux list such as ``0-3,8``, ascending.

    Raises
    ------
    ValueError
        When the text is no such list.
    """
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def read_cpu_quota(proc: Path = _PROC, cgroup: Path = _CGROUP) -> float | None:
    """Processor time that this process's control group may use, in cores; None when unlimited.

    The tightest limit on the way up the hierarchy counts.

    References
    ----------
    .. [1] Linux kernel, "Control Group v2", ``cpu.max``; "CFS Bandwidth Control" for v1.
    """
    quotas = [_quota_v1(cgroup / name) for name in ("cpu", "cpu,cpuacct")]
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    # Inside a container the path may be the host's, and not exist below its own root.
    directory = cgroup / own.strip("/")
    levels = (directory, *directory.parents)
    quotas.extend(_quota_v2(level) for level in levels if level.is_relative_to(cgroup))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(directory: Path) -> float | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        return quota / int((directory / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def find_launcher(pid: int, proc: Path = _PROC) -> int | None:
    """The nearest MPI launcher among a process and its ancestors; a shell may stand between."""
    while pid > 1:
        try:
            # "pid (program) state parent ...", where the program may contain anything.
            before, _, after = (proc / str(pid) / "stat").read_text().rpartition(")")
            parent = int(after.split()[1])
        except (OSError, ValueError, IndexError):
            return None
        if before.partition("(")[2] in _LAUNCHERS:
            return pid
        pid = parent
    return None
