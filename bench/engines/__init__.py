"""Ours beside the inference engines of one machine, interleaved, on the same weights.

``python -m bench.engines`` measures one model after the other. For each of them:

- :mod:`bench.engines.export` writes the calibrated model, its input and its answer in float64
  once, in every format that a contender reads;
- every contender (:mod:`bench.engines.contenders`) is a long-lived process that is bound to its
  cores, has the model loaded, and sleeps until it is told over a socket to answer some requests:
  an engine or plain torch (:mod:`bench.engines.worker`), or an mpirun job of ours
  (:mod:`bench.engines.job`);
- :mod:`bench.engines.rounds` gives them short turns, one at a time, and lets the next one start
  only when the last one has really gone to sleep: thread pools spin for a while after their work;
- :mod:`bench.engines.page` and :mod:`bench.engines.plot` tell what came out.

The modules that run inside an engine's environment (:mod:`~bench.engines.worker`,
:mod:`~bench.engines.adapters`, :mod:`~bench.engines.channel`) import nothing but numpy, the
engine and the standard library.
"""
