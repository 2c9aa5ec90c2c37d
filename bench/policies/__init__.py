"""Every partitioner on emulated clusters of this machine, measured: ``python -m bench.policies``.

``grid``
    Models, clusters, and who takes part where; clusters as files of the planner's format.
``__main__``
    Cell after cell: the testbed of a cluster comes up, one job measures a model on it, and what
    was found is kept.
``job``, ``cell``
    That job: it plans with every partitioner, and lets the plans take turns.
``undivided``
    What its answers are compared with.
``results``
    What was measured, in a file.
``claims``
    What the results show, and what they do not.
``page``, ``plots``
    The results as text and pictures.
"""
