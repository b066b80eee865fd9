"""The problems of benchmarks/search_quality.py, one file each."""
