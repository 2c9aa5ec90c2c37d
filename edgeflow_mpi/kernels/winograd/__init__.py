"""Convolutions with fewer multiplications, on channels-last memory as it is.

Winograd's minimal filtering F(m, r) makes m results of a filter with r taps by m + r - 1
multiplications in place of m r, once along each dimension: a 3×3 convolution needs 36 products
for 4×4 results, not 144. Tiles of the map are transformed, every one of the 36 products is a
matrix product over channels, and the results are transformed back with bias, residual sum and
activation.

What other engines lose to layouts is won here: with channels innermost all three steps work on
vectors of neighbouring channels, so rows are read and written where messages put and take them,
and padding is a matter of addresses.

``points``
    The interpolation points, and the exact matrices that follow from them.
``transforms``
    The matrices as few vector operations.
``variant``
    Filtering along height and width, and what is left of it at the edges of a map.
``tiles``
    Tiles of one kind from the map to points, and from products to results.
``gemm``
    Products of a few tiles with a panel of weights, all sums in registers.
``code``
    One whole convolution, and what it shares among threads.
``compiled``
    These functions, made on first use.
``blocking``
    How a convolution is cut into blocks.
``tables``
    Its tiles in the order in which they are computed.
``convolution``
    One prepared convolution: its frame, and calling it.
``choice``
    Which minimal filtering suits a convolution.
``fuse``
    Steps of a layer that are one such convolution.
``engine``
    The engine.

References
----------
.. [1] A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
.. [2] S. Winograd, Arithmetic Complexity of Computations, SIAM, 1980.
"""
