"""Plans: which rank owns and computes which rows of every layer.

:mod:`.plan` is the frozen value that everything here makes or reads: for every layer the rows
that each rank owns and computes, and the order in which ranks run their layers.
:mod:`.flow` says what a plan makes travel: which rows, from whom to whom, for which consumer.
The cost model and the compiler of unit tables share that one rule, and :mod:`.pieces`, which
says when a unit computes its boundary rows first. :mod:`.cost` predicts how long a plan takes
on a measured profile.

Plans are made layer by layer (:mod:`.progressive`): a :mod:`.timeline` knows when which rows
are where, a policy divides the layers that can be divided (:mod:`.baselines`: evenly, by speed,
or not at all; :mod:`.lp` with :mod:`.linear_program`: EdgeFlow's linear program), and
:mod:`.placement` finds a place for those that cannot. :mod:`.search` has all partitioners by
name and chooses the devices that take part. :mod:`.random` makes plans that test everything
behind.
"""
