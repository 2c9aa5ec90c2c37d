"""Code for kinds of processors, whatever this one is."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llvmlite import binding

from edgeflow_mpi.kernels.llvm.machine import Machine, suited
from edgeflow_mpi.kernels.llvm.sequence import Kind, Operation, sequence
from edgeflow_mpi.kernels.native import NativeCall


@dataclass(frozen=True)
class Processor:
    """A processor by LLVM's names; ``stacked`` matches vectors that are kept in memory."""

    name: str
    cpu: str
    features: str
    triple: str
    stacked: str

    @property
    def machine(self) -> Machine:
        machine = suited(self.cpu, "", frozenset(self.features.split()))
        assert machine is not None
        return machine


_X86 = "x86_64-unknown-linux-gnu"
_STACKED = r"[yz]mm.*\(%rsp\)"
PROCESSORS = (
    Processor("avx512", "skylake-avx512", "avx512f avx512vl", _X86, _STACKED),
    Processor("avx2", "x86-64-v3", "avx2 fma", _X86, _STACKED),
    Processor("neon", "cortex-a72", "neon", "aarch64-unknown-linux-gnu", r"(str|ldr)\s+q.*\[sp"),
)


def assembly(processor: Processor, module: str) -> str:
    """The instructions of a module that was made for the processor's machine."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(processor.triple)
    generator = target.create_target_machine(
        cpu=processor.cpu, opt=3, reloc="pic", codemodel="small"
    )
    parsed = binding.parse_assembly(module)
    parsed.triple = processor.triple
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    passes = binding.create_pass_builder(generator, tuning)
    passes.getModulePassManager().run(parsed, passes)
    made: str = generator.emit_assembly(parsed)
    return made


def run_natively(call: NativeCall) -> None:
    """Run one kernel as a sequence of operations does, and look at its time."""
    made = sequence([Operation(Kind.CALL, call)])
    assert made is not None
    assert made.run(0, 1) == 1
    started_s, ended_s = made.times_s(0)
    assert 0 < started_s <= ended_s <= time.perf_counter()
