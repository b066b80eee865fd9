"""Fused single-pass kernels for the CPU, compiled by numba when first used."""
