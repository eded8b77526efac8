"""Training techniques for PyTorch Lightning, as parts that can be trusted.

Add a technique to ``Trainer(callbacks=[...])``; each one's settings, effects and costs stand on its
card, the docstring of its class.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_tricks.public import *  # noqa: F403  # what it offers stands there

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Not before something of it is asked for: Lightning takes longer to load than most models to fuse.
    if name != "__all__" and name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = import_module("lightning_tricks.public")
    globals().update({key: getattr(public, key) for key in ("__all__", *public.__all__)})
    try:
        return globals()[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
