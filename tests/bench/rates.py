"""Rates of a machine that are measured once and on small matrices: at full size that takes five
seconds of a CPU."""

SMALL = {"_COPIED_BYTES": {"cpu": 1 << 20}, "_CONVOLVED_SIDE": 8}
SMALL_PRODUCT = {"_MATRIX_SIDE": {"cpu": 128}, "_REPEATS": 1}
# The same for programs that run in a process of their own.
SMALL_RATES = f"""
from qdmr_ray.bench import (machine)
from qdmr_ray.stages import (arithmetic)
vars(arithmetic).update({SMALL_PRODUCT!r})
vars(machine).update({SMALL!r})
"""
