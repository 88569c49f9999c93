"""Benchmarks and tables, each one command."""
