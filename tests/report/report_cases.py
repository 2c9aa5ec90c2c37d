"""Reports of made-up runs, for the tests of what is printed and written."""

from __future__ import annotations

from dataclasses import replace

from edgeflow_mpi.report.results import (
    Difference,
    Latency,
    LayerComparison,
    RankStats,
    RunReport,
    SingleDevice,
    Verification,
)
from edgeflow_mpi.report.timings import Timings

CLUSTER = RunReport(
    model="torchvision:resnet50",
    weights_note="weights from resnet50.safetensors",
    random_weights=False,
    partitioner="lp",
    input_shapes=((1, 3, 224, 224),),
    requests=("the photograph china.jpg from scikit-learn",),
    latency=Latency((192.0, 180.0, 181.5, 184.25, 183.0)),
    per_rank=(
        RankStats(0, "pi4-a", 58, 1204, 131.04, 50.2, 1_204_224, 101, 412_000_000, 4),
        RankStats(1, "pi4-b", 56, 1190, 128.7, 52.96, 1_960_448, 163, 398_500_000, 4),
        RankStats(2, "pi3-livingroom", 41, 206, 90.0, 88.1, 260_000, 62, 251_000_000, 4),
    ),
    single_device=SingleDevice(386.4, 1),
    predicted_ms=175.5,
    verification=Verification((Difference("output", 3.1e-5, 2.1e-6, 1.4e-6, 1e-5),)),
    timings=Timings(
        import_s=6.5,
        mpi_s=0.25,
        capture_s=2.5,
        profile_s=7.25,
        partition_s=0.5,
        compile_s=0.125,
        distribute_s=1.75,
        first_answer_s=19.5,
        reused=("model",),
    ),
    versions={"edgeflow_mpi": "0.1.0", "python": "3.11.9", "mpi": "Open MPI v5.0.11"},
    warmup=2,
    repeat=5,
)

SLOWER = replace(
    CLUSTER,
    timings=Timings(capture_s=2.5),
    latency=Latency((540.0,)),
    warmup=0,
    repeat=1,
    predicted_ms=600.0,
    verification=Verification(
        (Difference("out", 0.5, 0.31, 1.4e-6, 1e-5), Difference("aux", 1e-6, 1e-7, 1e-7, 1e-5)),
        layers=LayerComparison(
            (
                Difference("conv2d", 1e-6, 1e-6, 1e-6, 1e-5),
                Difference("conv2d_1", 0.5, 0.2, 1e-6, 1e-5),
                Difference("add", 0.25, 0.125, 2.75e-6, 1.1e-5),
            ),
            ("constant_7",),
        ),
    ),
    notes=("rank 2 has another torch (2.12.0)",),
)

ONE_HOST = replace(
    CLUSTER,
    weights_note="random weights, seed 0, batch norm calibrated on photographs",
    random_weights=True,
    per_rank=tuple(replace(stats, host="laptop") for stats in CLUSTER.per_rank),
    single_device=SingleDevice(150.0, 0),
    requests=("a.jpg", "b.jpg"),
)
