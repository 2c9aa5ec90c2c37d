"""Execution units: what every rank computes, waits for and sends, as tables.

A plan says which rows of every layer each rank owns and computes. Here it becomes, for each
rank, a list of *units*: one layer's rows with what they require (rows computed on this rank,
and transfers that bring the rest), and what is forwarded when they are done. A run needs
nothing else: no rank asks another, or a master, what to do next.

- :mod:`~edgeflow_mpi.units.tables`: the frozen values. One :class:`Transfer` names both ends
  of a message, and the same object stands in the sender's and in the receiver's table.
- :mod:`~edgeflow_mpi.units.compile`: graph + plan -> tables; tags are counted out last.
- :mod:`~edgeflow_mpi.units.verify`: everything that could go wrong with tables, found before
  they run; :mod:`~edgeflow_mpi.units.messages` holds the part about transfers,
  :mod:`~edgeflow_mpi.units.faults` the exceptions.
- :mod:`~edgeflow_mpi.units.dryrun`: all ranks in one process, without data: a deadlock is an
  exception.
- :mod:`~edgeflow_mpi.units.text`: the text form, which people read, diff and may edit.
"""
