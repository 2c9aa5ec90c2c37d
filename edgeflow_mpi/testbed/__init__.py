"""A cluster of devices on one Linux machine: ``launch/testbed``.

A cluster file becomes hosts and links. Every device is a host of its own: a network namespace
with an address, a host name (a UTS namespace) and a file of everybody's names. Hosts are joined
by a switch, a program that hands frames over when they would have arrived; or, where that cannot
be had, by virtual cables (veth) with token buckets to a bridge. Either is in a namespace of its
own, so that nothing is added to the network of the machine itself. ``mpirun`` reaches the hosts
through ``launch/testbed-agent``, which it calls in place of ssh. So TCP and MPI are the real ones;
what is not, ``docs/testbed.md`` says.

=================  =============================================================================
:mod:`.layout`     from a cluster file to hosts, addresses and rates; refuses what cannot be
:mod:`.switching`  from a layout to what the switch (``switch.c``) and ``ip`` read
:mod:`.commands`   from a layout to the lines that ``ip`` and ``tc`` read where there is no switch
:mod:`.system`     runs them, and finds out what the kernel has
:mod:`.state`      what is up, in a folder below ``/run``
:mod:`.probe`      latency and bandwidth between two hosts, with plain sockets
:mod:`.bed`        up, down, status, exec, run
=================  =============================================================================

This package stands beside the job: it starts jobs and knows nothing of them but their options.
"""
