"""Models, their weights and their inputs; rank 0 alone needs this package.

:mod:`~edgeflow_mpi.model.load` takes a model from torchvision, from a program that
``torch.export`` wrote, or from a factory, and captures it at fixed shapes. The weights of
a torchvision model are random unless a file is given, and
:mod:`~edgeflow_mpi.model.calibrate` sees to it that the output then really depends on the
input. :mod:`~edgeflow_mpi.model.inputs` turns images and arrays into requests, and
:mod:`~edgeflow_mpi.model.reference` computes by plain torch what the answer must be.
Nothing here knows of ranks, rows or plans.
"""
