"""What a search varies: techniques, on and off, and settings, each within a range or of a list of choices."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from lightning_tricks.core import checks
from lightning_tricks.study.dimensions import Choices, Dimension, dimension

__all__ = ["Part", "Point", "Space", "acting"]

Point = Mapping[str, Any]
"""A value for each setting of a space by its name; of a technique, True where it is on."""


def acting(point: Point) -> dict[str, Any]:
    """Return ``point`` without the settings of techniques that are off, which change nothing.

    Example:
        >>> acting({"lr": 0.1, "EMAWeights": False, "EMAWeights.decay": 0.9})
        {'lr': 0.1, 'EMAWeights': False}
    """
    off = tuple(f"{name}." for name, value in point.items() if value is False)
    return {name: value for name, value in point.items() if not name.startswith(off)}


@dataclass(frozen=True)
class Part:
    """What is varied of one technique.

    Attributes:
        optional: Whether it may be off.
        settings: What its settings may be.
    """

    optional: bool = False
    settings: Mapping[str, Dimension] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """What a search varies.

    Attributes:
        settings: What each setting may be, by its name.
        techniques: What is varied of each technique, by its name.
    """

    settings: Mapping[str, Dimension] = field(default_factory=dict)
    techniques: Mapping[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that there is something to search."""
        if not self.dimensions:
            raise ValueError("space must vary at least one setting or optional technique, got none")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Space:
        """Return the space that nested mappings describe, as YAML holds them.

        Args:
            given: By the name of a setting, a list of choices, or a mapping with ``low``, ``high`` and maybe
                ``log: true`` or ``step``; whole numbers where all of these are. Under ``techniques``, by the
                name of a technique, a mapping of its settings, and ``optional: true`` if it may be off.

        Raises:
            TypeError: If something is of another type.
            ValueError: If something is not as it must be; names it.

        Example:
            >>> space = Space.of({
            ...     "lr": {"low": 0.001, "high": 0.1, "log": True},
            ...     "techniques": {"EMAWeights": {"optional": True, "decay": [0.9, 0.99]}},
            ... })
            >>> list(space.dimensions)
            ['lr', 'EMAWeights', 'EMAWeights.decay']
        """
        entries = dict(_mapping("space", given))
        techniques = _mapping("techniques", entries.pop("techniques", {}))
        return cls(
            {name: dimension(name, each) for name, each in entries.items()},
            {name: _part(name, each) for name, each in techniques.items()},
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Space:
        """Read a space from a YAML file.

        Raises:
            OSError: If it cannot be read.
            TypeError: If it holds something else.
            ValueError: Likewise.
        """
        import yaml  # type: ignore[import-untyped]  # its types are another package

        try:
            return cls.of(yaml.safe_load(Path(path).read_text("utf-8")))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} must be a space in YAML: {error}") from error

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """What may vary, by name; ``technique`` where one may be off, and ``technique.setting``."""
        found = dict(self.settings)
        for name, part in self.techniques.items():
            if part.optional:
                found[name] = Choices((True, False))
            found.update({f"{name}.{setting}": each for setting, each in part.settings.items()})
        return found

    @property
    def size(self) -> int | None:
        """How many different trials there can be; None without end."""
        sizes = [each.size for each in self.settings.values()]
        for part in self.techniques.values():
            of_part = [each.size for each in part.settings.values()]
            on = None if None in of_part else prod(size for size in of_part if size is not None)
            sizes.append(None if on is None else on + part.optional)
        return None if None in sizes else prod(size for size in sizes if size is not None)

    def points(self, default: Point) -> Iterator[dict[str, Any]]:
        """Go through all different trials; what does not act is as in ``default``.

        Raises:
            ValueError: If a range has no steps; names it.
        """
        values = {name: each.values_of(name) for name, each in self.dimensions.items()}
        for found in itertools.product(*values.values()):
            point = dict(zip(values, found, strict=True))
            still = point.keys() - acting(point).keys()
            if all(point[name] == values[name][0] for name in still):  # once, and not for each of these
                yield {**point, **{name: default[name] for name in still}}

    def check(self, default: Point) -> None:
        """Accept a default that lies within the space.

        Raises:
            ValueError: If it does not; names the setting.
        """
        for name, value in default.items():
            if not self.dimensions[name].holds(value):
                raise ValueError(
                    f"{name} must be able to stay {value!r} as it is configured, which the search begins "
                    f"and compares with, got {self.dimensions[name].plain()}"
                )

    def plain(self) -> dict[str, Any]:
        """Return what :meth:`of` takes."""
        found: dict[str, Any] = {name: each.plain() for name, each in self.settings.items()}
        techniques = {
            name: {
                **({"optional": True} if part.optional else {}),
                **{key: each.plain() for key, each in part.settings.items()},
            }
            for name, part in self.techniques.items()
        }
        return {**found, **({"techniques": techniques} if techniques else {})}

    def to_yaml(self) -> str:
        """Return the text of a file that :meth:`read` takes.

        Example:
            >>> print(Space.of({"lr": [0.1, 0.2]}).to_yaml(), end="")
            lr: [0.1, 0.2]
        """
        import yaml

        return str(yaml.safe_dump(self.plain(), sort_keys=False, default_flow_style=None, width=100))


def _part(name: str, given: Any) -> Part:
    entries = dict(_mapping(f"techniques.{name}", given))
    optional = checks.flag(f"{name}.optional", entries.pop("optional", False))
    settings = {key: dimension(f"{name}.{key}", each) for key, each in entries.items()}
    if not (optional or settings):
        raise ValueError(f"{name} must be optional or have settings to vary, got neither")
    return Part(optional, settings)


def _mapping(name: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a mapping of names to what they may be, got {given!r:.80}")
    return given
