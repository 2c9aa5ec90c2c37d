"""The stages of one MPI job, in the order in which all ranks go through them together."""
