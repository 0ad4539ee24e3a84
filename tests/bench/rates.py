"""The fixture ``small_rates`` of conftest.py, for programs that run in a process of their own."""

SMALL_RATES = """
from qdmr_ray.bench import (step)
step._MATRIX_SIDE["cpu"], step._COPIED_BYTES["cpu"], step._MATRIX_REPEATS = 128, 1 << 20, 1
"""
