"""QDMR on Ray: real-world aberration correction, from photographs to a trained restorer.

    from qdmr_ray import evaluate, load_experiment, train

    run = train(load_experiment(Path("experiments/demo.yaml")), storage="runs")
    print(evaluate(run)["stages"])

Each function does what the command of its name does. It is imported at its first use: ``import
qdmr_ray`` itself imports neither Ray nor PyTorch.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdmr_ray.api import compare, evaluate, load_experiment, load_sweep, restore, sweep, train

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "load_experiment", "load_sweep", "restore", "sweep", "train"]
_FUNCTIONS = "qdmr_ray.api"
# These public functions share their name with a subpackage.
_PACKAGES = ("train", "evaluate", "restore")


def __getattr__(name: str) -> Any:
    """Imports a public function at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(_FUNCTIONS), name)


class CallablePackage(ModuleType):
    """A subpackage that can be called like the public function of its name.

    ``qdmr_ray.train`` is both the function that users import and the package of its modules. Python
    binds a subpackage to its parent's attribute at any import of it, so a plain function of that
    name would exist or not depending on the order of imports. A callable module is always both, for
    attribute look-ups such as ``qdmr_ray.train.run`` too. Type checkers see the plain function.
    """

    def _function(self) -> Any:
        return getattr(import_module(_FUNCTIONS), self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the public function."""
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        """The public function's signature, for ``inspect.signature`` and for editors."""
        from inspect import signature

        return signature(self._function())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the module by its name, as pickling libraries do with plain modules."""
        return import_module, (self.__name__,)
