"""Training on Ray: the loop inside the workers, and the driver that runs stage after stage. The
package can also be called: ``from qdmr_ray import train; train(experiment)``."""

import sys

from qdmr_ray import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
