"""Convolutions as they are defined, on channels-last memory as it is: every sum in registers.

What other engines do not do faster: strides, dilations, few channels, few results. A few results
and a panel of output channels at a time are summed over all taps and input channels. Taps that lie
side by side in memory are one run, so three input channels are no special case. Rows of a padded
map are copied beside zeros, as many as stay in the second-level cache; a map without padding is
read where it lies.

``code``
    The sums, and how threads share them.
``filters``
    Weights as the sums read them.
``convolution``
    One prepared convolution: its frame, and calling it.
``fuse``
    Steps of a layer that are one such convolution.
``linear``
    Linear layers as such convolutions.
``engine``
    The engine.
"""
