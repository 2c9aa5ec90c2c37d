"""Examples that can be run as they are, with ``python -m edgeflow_mpi.examples.NAME``."""
