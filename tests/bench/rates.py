"""The fixture ``small_rates`` of conftest.py, for programs that run in a process of their own."""

SMALL_RATES = """
from qdmr_ray.bench import (machine)
machine._MATRIX_SIDE["cpu"], machine._COPIED_BYTES["cpu"], machine._REPEATS = 128, 1 << 20, 1
"""
