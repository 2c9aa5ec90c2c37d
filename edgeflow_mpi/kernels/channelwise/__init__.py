"""Depthwise convolutions and pools: every channel by itself, on channels-last memory as it is.

A few neighbouring results of a row at a time, and one vector of channels after the other: what a
window reads is read once for all of them, sums stay in registers, and bias and bounds are done
there. Padding is a matter of addresses: rows beside the map are left out, columns beside it are
read from a constant.

``code``
    The loops, and how threads share them.
``windows``
    One prepared computation: its frame, and calling it.
``fuse``
    Steps of a layer that are one such computation.
``summands``
    Sums over whole maps as such windows.
``join``
    Maps side by side in one.
``engine``
    The engine.
"""
