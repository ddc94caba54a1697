"""Benchmarks: one file per op or job, every peer and the measured floor in the same run."""
