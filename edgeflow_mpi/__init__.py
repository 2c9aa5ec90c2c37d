"""Several small computers answer one request of a vision model together.

The package is a pipeline of frozen values, one sub-package a stage::

    model    a torch module or exported program, its weights, its inputs, its oracle
    graph    the layer DAG: captured, fused, with a row rule for every operator
    kernels  a layer and a span of its rows -> a callable that computes just those rows
    cluster  what was measured: seconds per layer row on each device, latency and bandwidth
    partition  a plan: which rank owns and computes which rows of every layer
    units    per-rank tables of execution units, compiled from graph and plan, and verified
    runtime  every rank runs its units as inputs arrive; nonblocking point-to-point messages
    report   what a person, or a tool, reads afterwards

A module imports only from stages above its own in this list. ``edgeflow_mpi.run`` is the
MPI job that ties them together; ``python -m edgeflow_mpi`` holds the other commands.

References
----------
.. [1] C. Hu and B. Li, "Distributed Inference with Deep Learning Models across
   Heterogeneous Edge Devices", IEEE INFOCOM 2022 (EdgeFlow): execution units with input
   requirements, a computation operator and a forwarding table.
"""

__version__ = "0.1.0"
