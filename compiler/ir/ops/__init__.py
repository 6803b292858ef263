"""One file an operation; `catalog()` in op.py finds them by name."""
