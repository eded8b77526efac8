"""Techniques as LightningCLI reads them: to be printed, kept in a file, edited, and built again."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from lightning_tricks.core.schedule import Schedule
from lightning_tricks.lifecycle.technique import Technique

__all__ = ["as_plain", "to_yaml"]


def to_yaml(*techniques: Technique) -> str:
    """Return the part of a LightningCLI configuration that builds ``techniques`` with all their settings.

    Schedules are written as text, types by their paths, policies by class path.

    Raises:
        TypeError: If one is no technique.
        ValueError: If a setting holds what cannot be written down, such as a function or a local class.

    Example:
        >>> from lightning_tricks import ExactResume
        >>> print(to_yaml(ExactResume(label="one")), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.ExactResume
            init_args:
              label: one
    """
    import yaml  # type: ignore[import-untyped]  # its types are another package

    for technique in techniques:
        if not isinstance(technique, Technique):
            raise TypeError(f"to_yaml must be given techniques, got {technique!r}")
    callbacks = [as_plain(technique, type(technique).__name__) for technique in techniques]
    config = {"trainer": {"callbacks": callbacks}}
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100))


def as_plain(value: Any, name: str) -> Any:
    """Return ``value``, the setting ``name``, as a configuration holds it.

    Raises:
        ValueError: If that cannot be written down, such as a function or a local class.

    Example:
        >>> from lightning_tricks import Percentile, warmup
        >>> as_plain(Percentile(10), "max_norm")
        {'class_path': 'lightning_tricks.Percentile', 'init_args': {'percent': 10.0}}
        >>> as_plain((2 * warmup("5%"), 0.1), "max_norm")
        ["2 * warmup('5%')", 0.1]
    """
    if isinstance(value, Schedule):
        return repr(value)
    if isinstance(value, type):
        return _path(value, name)
    if dataclasses.is_dataclass(value):
        held = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value) if entry.init}
        if held.get("label", "") is None:
            del held["label"]
        settings = {key: as_plain(each, f"{name}.{key}") for key, each in held.items()}
        return {"class_path": _path(type(value), name), "init_args": settings}
    if isinstance(value, list | tuple):
        return [as_plain(each, f"{name}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, dict):
        return {key: as_plain(each, f"{name}[{key!r}]") for key, each in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{name} must be text, a number, a type or a policy to be written down, got {value!r}")


def _path(kind: type, name: str) -> str:
    """Return the path of ``kind``, from its package alone where that offers it."""
    for module in (kind.__module__.partition(".")[0], kind.__module__):
        if getattr(sys.modules.get(module), kind.__name__, None) is kind:
            return f"{module}.{kind.__name__}"
    raise ValueError(
        f"{name} must have a type that a module offers to be written down, got {kind!r}: define it at the "
        "module's top level"
    )
