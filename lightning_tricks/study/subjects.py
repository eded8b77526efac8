"""What a search trains: a factory or a LightningCLI project, with some settings and techniques changed."""

from __future__ import annotations

import inspect
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from typing import Any, final

from lightning.pytorch import Callback

from lightning_tricks.core import checks
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.study.arguments import Given, made_from
from lightning_tricks.study.project import Project, made
from lightning_tricks.study.ranges import RANGES
from lightning_tricks.study.space import Point, Space
from lightning_tricks.study.trial import Build, SameOrder, flat

__all__ = ["Factory", "OfProject", "Subject", "class_named"]


def class_named(name: str) -> type[Technique]:
    """Return the technique of this package that is called ``name``.

    Raises:
        ValueError: If there is none; names the nearest.
    """
    checks.one_of("techniques", name, list(RANGES))
    found: type[Technique] = getattr(sys.modules[__name__.partition(".")[0]], name)
    return found


@dataclass(frozen=True)
class Subject(ABC):
    """What is trained, and how it is changed."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The techniques that it has by itself."""

    @abstractmethod
    def setting(self, name: str) -> Any:
        """Return the value of a setting.

        Raises:
            ValueError: If there is no such setting.
        """

    @abstractmethod
    def build(self, changes: Mapping[str, Any]) -> Build:
        """Return what makes the module, the data and the Trainer's settings."""

    @abstractmethod
    def technique(self, name: str, changes: Mapping[str, Any]) -> Callback:
        """Return a technique, new, with some settings changed.

        Raises:
            TypeError: If it refuses them.
            ValueError: Likewise.
        """

    @abstractmethod
    def plain(self) -> dict[str, Any]:
        """Return what else must not change while a study lasts, by name."""

    def default(self, space: Space) -> dict[str, Any]:
        """Return the point of ``space`` at which nothing is changed; techniques that it has not are off.

        Raises:
            TypeError: If there is no such setting or technique, or one refuses a value of the space.
            ValueError: Likewise.
        """
        found = {name: self.setting(name) for name in space.settings}
        for name, part in space.techniques.items():
            here = name in self.names
            if not (here or part.optional):
                raise ValueError(f"{name} must be optional, for it is no technique of the configuration")
            first = {key: each.ends[0] for key, each in part.settings.items()}
            technique = self.technique(name, {} if here else first)
            if part.optional:
                found[name] = here
            for key, each in part.settings.items():
                found[f"{name}.{key}"] = _setting_of(name, technique, key) if here else first[key]
                for end in each.ends:
                    self._try(name, key, {**({} if here else first), key: end})
        return found

    def _try(self, name: str, key: str, changes: Mapping[str, Any]) -> None:
        try:
            self.technique(name, changes)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}.{key} must be able to be {changes[key]!r} in the space: {error}"
            ) from error

    def techniques(self, space: Space, point: Point) -> list[Callback]:
        """Return the techniques that are on at ``point``, new."""
        return [self.technique(name, changes) for name, changes in self.changes(space, point).items()]

    def changes(self, space: Space, point: Point) -> dict[str, dict[str, Any]]:
        """Return what ``point`` changes of each technique that is on."""
        found: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys([*self.names, *space.techniques]):
            part = space.techniques.get(name)
            if part is None or point.get(name, True):
                found[name] = {} if part is None else {key: point[f"{name}.{key}"] for key in part.settings}
        return found

    def settings(self, space: Space, point: Point) -> dict[str, Any]:
        """Return what ``point`` changes of all but techniques."""
        return {name: point[name] for name in space.settings}


def _setting_of(name: str, technique: Callback, key: str) -> Any:
    entries: tuple[Field[Any], ...] = fields(technique) if is_dataclass(technique) else ()
    known = [entry.name for entry in entries if entry.init]
    return getattr(technique, checks.one_of(f"{name}'s settings", key, known))


@final
@dataclass(frozen=True)
class Factory(Subject):
    """A function that builds, and callbacks.

    Attributes:
        function: Of a seed, and of settings by name, which have defaults.
        callbacks: Techniques, or functions that make one, by name.
    """

    function: Callable[..., Any]
    callbacks: Mapping[str, Given]

    @property
    def names(self) -> Sequence[str]:
        return list(self.callbacks)

    def setting(self, name: str) -> Any:
        known = {
            key: each.default
            for key, each in inspect.signature(self.function).parameters.items()
            if each.default is not each.empty
        }
        return known[checks.one_of("settings of build with a default", name, list(known))]

    def build(self, changes: Mapping[str, Any]) -> Build:
        return partial(self.function, **changes)

    def technique(self, name: str, changes: Mapping[str, Any]) -> Callback:
        given = self.callbacks.get(name)
        if given is None:
            return class_named(name)(**changes)
        found = made_from(given)
        if not changes:
            return found
        for key in changes:
            _setting_of(name, found, key)
        return replace(found, **changes)  # type: ignore[type-var]  # it has such fields

    def plain(self) -> dict[str, Any]:
        techniques = {name: self.technique(name, {}) for name in self.names}
        return flat({"techniques": {name: _plain_technique(each) for name, each in techniques.items()}})


def _plain_technique(technique: Callback) -> dict[str, Any]:
    settings = technique.settings() if isinstance(technique, Technique) else {}
    return {"class": type(technique).__qualname__, **settings}


@final
@dataclass(frozen=True)
class OfProject(Subject):
    """A project that LightningCLI reads.

    Attributes:
        project: As it is configured.
    """

    project: Project

    @property
    def names(self) -> Sequence[str]:
        return list(self.project.entries)

    def setting(self, name: str) -> Any:
        if name in ("seed_everything", "trainer.callbacks"):
            raise ValueError(f"{name} must be left out of the space: it is not a setting of a trial")
        found: Any = self._known
        for key in name.split("."):
            if not isinstance(found, Mapping) or key not in found:
                hint = checks.nearest(name, _paths(self._known), count=1)
                meant = f"; did you mean {hint[0]!r}?" if hint else ""
                raise ValueError(f"space must name settings of the configuration, got {name!r}{meant}")
            found = found[key]
        return found

    @cached_property
    def _known(self) -> dict[str, Any]:
        with redirect_stdout(io.StringIO()):  # of the user's own classes
            return self.project.known()

    def build(self, changes: Mapping[str, Any]) -> Build:
        return replace(self.project, config=_changed(self.project.config, changes)).build

    def technique(self, name: str, changes: Mapping[str, Any]) -> Callback:
        return made(self._entry(name, changes))

    def _entry(self, name: str, changes: Mapping[str, Any]) -> Any:
        entry = self.project.entries.get(name)
        if entry is None:
            entry = {"class_path": f"lightning_tricks.{class_named(name).__name__}"}
        if isinstance(entry, str):  # a class without settings
            entry = {"class_path": entry}
        if not changes:
            return entry
        return {**entry, "init_args": {**(entry.get("init_args") or {}), **changes}}

    def plain(self) -> dict[str, Any]:
        techniques = {name: _plain_technique(self.technique(name, {})) for name in self.names}
        return {**self.project.settings, **flat({"techniques": techniques})}

    def config(self, space: Space, point: Point, *, seed: int) -> dict[str, Any]:
        """Return the configuration with which LightningCLI trains as the trial at ``point`` was."""
        config = deepcopy(_changed(self.project.config, self.settings(space, point)))
        entries = [self._entry(name, changes) for name, changes in self.changes(space, point).items()]
        order = {"class_path": f"{SameOrder.__module__}.{SameOrder.__name__}", "init_args": {"seed": seed}}
        trainer = {**config["trainer"], "callbacks": [*config["trainer"]["callbacks"], *entries, order]}
        return {**config, "seed_everything": seed, "trainer": trainer}


def _paths(nested: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in nested.items():
        inner = isinstance(value, Mapping) and bool(value)
        found += _paths(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return found


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = deepcopy(dict(config))
    for name, value in changes.items():
        *path, last = name.split(".")
        at = found
        for key in path:
            at[key] = dict(at.get(key) or {})
            at = at[key]
        at[last] = value
    return found
