"""Tests of fastft.kernels."""
