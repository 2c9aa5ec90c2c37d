"""The model of :mod:`edgeflow_mpi.partition.cost`, fast enough for a search.

:func:`~edgeflow_mpi.partition.cost.predict` says in readable Python what a plan does when, and
takes tens of milliseconds. Here a graph on a profile becomes flat arrays
(:mod:`~edgeflow_mpi.partition.simulator.problem`), a plan becomes others
(:mod:`~edgeflow_mpi.partition.simulator.state`), and small functions over them
(:mod:`~edgeflow_mpi.partition.simulator.flows` finds what travels,
:mod:`~edgeflow_mpi.partition.simulator.run` runs the events) run compiled
(:mod:`~edgeflow_mpi.partition.simulator.jit`): thousands of plans a second, and the same
makespan.
"""
