"""The GPU kit: what a machine with one GPU shows of rayface in a few minutes.

It needs PyTorch, numba, NumPy, pyarrow, rich and typer, and nothing else of rayface's dependencies: no Ray, no MLflow,
no network. `python -m rayface.bench.gpu --help` says how to run it.
"""
