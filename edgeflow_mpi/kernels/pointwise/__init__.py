"""1×1 convolutions as matrix products of pixels with channels, on channels-last memory as it is.

The rows of the product are the pixels where they lie, its results go where they belong, and
bias, residual sum and activation are done in registers before that. Weights are packed into
panels of output channels once.

``code``
    The product, and how threads share it.
``product``
    One prepared product: its frame, and calling it.
``engine``
    The engine, and which convolutions it does.
"""
