"""Callables that compute just a span of a layer's rows."""
