"""Benchmarks and the demonstration; not part of the package."""
