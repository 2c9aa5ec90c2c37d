"""The devices and links of a job: set up, measured, and kept as a profile.

Before MPI starts, ``mpi_env`` makes its settings and ``affinity`` (with ``cpus``) gives every
rank its share of its host's cores; ``hosts`` reads hostfiles and warns of what the user
probably did not mean.

During set-up all ranks move together. ``comm`` says what is asked of a communicator and how
to wait on one without using a core; ``agree`` raises a failure of one rank on all of them.

Then rank 0 has its profile made, or found (``profiling``): ``devices`` asks every rank what it
is, ``measure`` times every distinct layer shape with the very kernels that will run, on all
ranks at once, ``links`` times messages of several sizes in each direction of every pair, and
``fit`` turns both into lines. The frozen result (``profile``) is a YAML file that people can
read and edit (``profile_yaml``, ``yaml_fields``), kept for the next job (``cache``).
"""
