"""The networks of QDMR in pure PyTorch, built from typed settings without Ray or any file.

>>> from qdmr_ray.nets import QDMR, NetworkSettings
>>> network = QDMR(NetworkSettings())   # the paper's 33.8 M parameters
"""

from qdmr_ray.nets.discriminator import UNetDiscriminator
from qdmr_ray.nets.qdmr import QDMR, Encoded, QDMROutput
from qdmr_ray.nets.registry import RestorationNetwork
from qdmr_ray.nets.settings import (
    DiscriminatorSettings,
    NetworkSettings,
    RestorationNetworkSettings,
    SwinSettings,
)
from qdmr_ray.nets.vqgan import VQGAN, SemanticHead, VQGANOutput
