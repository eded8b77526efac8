"""Optional packages: one that is missing is an error that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Surround the imports of packages that the extra ``name`` of this package installs.

    Raises:
        ModuleNotFoundError: If one of them is not installed.

    Example:
        >>> with extra("demo"):
        ...     import no_such_package
        Traceback (most recent call last):
        ModuleNotFoundError: no_such_package must be installed: pip install "lightning_tricks[demo]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = "scikit-learn" if (error.name or "").partition(".")[0] == "sklearn" else error.name
        message = f'{package} must be installed: pip install "lightning_tricks[{name}]"'
        raise ModuleNotFoundError(message, name=error.name) from None
