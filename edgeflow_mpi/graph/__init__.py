"""The layer DAG of a model: captured, fused, with the exact rows every operator needs."""
