"""Benchmarks of a running FMplex server."""
