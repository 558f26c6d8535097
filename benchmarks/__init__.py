"""Measurements in one form: `python -m benchmarks NAME --json`. The names are listed in benchmarks/README.md."""
