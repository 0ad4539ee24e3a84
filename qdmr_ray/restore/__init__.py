"""Corrects photographs of any size with a trained network. The package can also be called:
``from qdmr_ray import restore; restore(image, checkpoint)``."""

import sys

from qdmr_ray import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
