"""Restoration networks by kind: each is a module of this package or a class from outside.

    network.kind: qdmr                        # qdmr_ray/nets/qdmr.py
    network.kind: my_package.my_net:MyNet     # a class of the user's

A network is one file with a settings class and a subclass of :class:`RestorationNetwork`:

>>> @dataclass(frozen=True, kw_only=True)
... class BlurSettings(RestorationNetworkSettings):
...     width: int = setting(16, "channels", minimum=1)
>>> class Blur(RestorationNetwork):
...     settings_type = BlurSettings
...     def __init__(self, settings: BlurSettings) -> None:
...         super().__init__(settings)
...         self.body = nn.Conv2d(3, 3, 5, padding=2)
...     def forward(self, x: Tensor) -> Tensor:
...         return self.body(x)
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.nets.settings import DEFAULT_KIND, RestorationNetworkSettings

# The two ways to correct a photograph that is larger than the training crops.
STREAMED, TILED = "streamed", "tiled"
# Separates module and class in the kind of an outside network.
SEPARATOR = ":"


class RestorationNetwork(nn.Module):
    """A network that corrects images (B, 3, H, W) in [0, 1]; height and width are multiples of
    ``multiple``.

    ``forward`` returns the corrected images (B, 3, H, W), unclamped, or a named tuple that holds
    them as ``image``. Subclasses set:

    - ``settings_type``: the section ``network`` of an experiment with this kind;
    - ``kind``: the name in ``network.kind``; a class from outside needs none, since its module and
      class name it;
    - ``restored``: ``STREAMED`` where ``qdmr_ray.restore.streamed`` can run the network layer by
      layer, with exactly the result on the whole photograph; ``TILED`` for every other network;
    - ``overlap``: pixels that neighbouring tiles share. Pixels closer to a tile's edge than a
      quarter of it aren't used, so tiles are exact where the receptive field reaches no farther;
    - ``version``: raised when a change of the code makes the same settings train another result;
      the digest that identifies shared stages contains it.
    """

    settings_type: ClassVar[type[RestorationNetworkSettings]]
    kind: ClassVar[str | None] = None
    restored: ClassVar[str] = TILED
    overlap: ClassVar[int] = 64
    version: ClassVar[int] = 1
    # The sizes, of the type ``settings_type``.
    settings: Any

    def __init__(self, settings: RestorationNetworkSettings) -> None:
        super().__init__()
        self.settings = settings

    @property
    def multiple(self) -> int:
        """Height and width of an input image are multiples of this, in pixels."""
        return int(self.settings.multiple)

    @classmethod
    def supervised(cls) -> type["RestorationNetwork"]:
        """Returns the class that the supervised stage (``source_only``) trains, without the parts
        that need a trained codebook."""
        return cls

    @classmethod
    def from_foreign(cls, state: Mapping[str, Tensor], source: str) -> Self:
        """Returns the network whose weights stand in ``state`` under another program's names.

        ``qdmr import-weights --kind KIND`` calls it; ``source`` starts error messages. Raises
        QdmrError where the network reads no foreign weights, or these are not its own.
        """
        raise QdmrError(
            f"{source}: networks of kind {architecture_of(cls)} read no weights of other programs; "
            "define from_foreign in their class"
        )


def image_of(output: Any) -> Tensor:
    """Returns the images (B, 3, H, W) in the result of a network's ``forward``."""
    return output if isinstance(output, Tensor) else output.image


def architecture_of(network: type[nn.Module]) -> str:
    """Returns the name by which :func:`network_class` finds the class again."""
    kind: str | None = vars(network).get("kind")
    return kind or f"{network.__module__}{SEPARATOR}{network.__qualname__}"


def module_of(architecture: str) -> str | None:
    """Returns the user's module that defines the network, or None for a network of ours."""
    module, separator, _ = architecture.partition(SEPARATOR)
    return module if separator else None


def network_class(architecture: str) -> type[nn.Module]:
    """Returns the class of this name, a ``kind`` of this package or ``module:Class``; raises
    SettingsError where there is no such network."""
    built_in = built_in_networks()
    if architecture in built_in:
        return built_in[architecture]
    module_name, separator, name = architecture.partition(SEPARATOR)
    if not separator:
        raise SettingsError(
            f"no network is called {architecture!r}: known are {', '.join(built_in)}; a network "
            "of your own is named package.module:Class"
        )
    found = getattr(import_outside(module_name), name, None)
    if not (isinstance(found, type) and issubclass(found, RestorationNetwork)):
        raise SettingsError(
            f"{architecture}: {module_name} has no subclass of qdmr_ray.nets.RestorationNetwork "
            f"called {name}"
        )
    return found


def restoration_class(kind: str) -> type[RestorationNetwork]:
    """Returns the restoration network that ``network.kind`` names; raises SettingsError where there
    is no such network, or it restores nothing."""
    found = network_class(kind)
    if not issubclass(found, RestorationNetwork):
        raise SettingsError(f"network.kind is {kind!r}, which is no restoration network")
    return found


@cache
def built_in_networks() -> dict[str, type[nn.Module]]:
    """Returns this package's networks by kind: every class in its modules that sets ``kind``."""
    from qdmr_ray import nets

    names = [info.name for info in pkgutil.iter_modules(nets.__path__) if not info.ispkg]
    modules = [importlib.import_module(f"{nets.__name__}.{name}") for name in names]
    found = [network for module in modules for network in classes_of(module, nn.Module)]
    networks = {vars(network)["kind"]: network for network in found if vars(network).get("kind")}
    # The default comes first, as messages list the kinds in this order.
    return dict(sorted(networks.items(), key=lambda item: (item[0] != DEFAULT_KIND, item[0])))


def classes_of(module: ModuleType, base: type) -> list[type[Any]]:
    """Returns the subclasses of ``base`` that ``module`` itself defines, in their order."""
    classes = [found for found in vars(module).values() if isinstance(found, type)]
    return [c for c in classes if issubclass(c, base) and c.__module__ == module.__name__]


def import_outside(name: str) -> ModuleType:
    """Imports a user's module, also from the current folder, as ``python -m`` does; raises
    SettingsError where the import fails."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        # The qdmr command has its own folder on the path instead of the current one.
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    # A user's module may raise anything while it is imported.
    except Exception as error:
        raise SettingsError(
            f"{name}: can't be imported ({type(error).__name__}: {' '.join(str(error).split())}); "
            f"it must lie in {here} or be installed"
        ) from error
