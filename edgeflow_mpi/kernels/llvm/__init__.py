"""Code for this very processor, written here and compiled by LLVM through llvmlite.

Optional: where llvmlite is not installed, the engines that need it are not there.

``available``
    Whether it is.
``machine``
    Vectors and registers of a processor.
``emit``
    Loops and vectors in LLVM's language.
``frame``
    What a computation depends on, in memory, and stages whose items threads share.
``objects``
    Machine code, made when first wanted and kept between jobs.
``packed``
    Weights as code reads them.
``memory``
    Memory that computations work in, and the maps they are given.
"""
