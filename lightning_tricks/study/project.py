"""A LightningCLI project's configuration, as what a study trains."""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lightning_tricks.core import checks
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.study.arguments import name_of
from lightning_tricks.study.trial import Setup, flat

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningCLI

__all__ = ["Project", "made"]

# Of commands such as ``fit``, and written into the configurations that LightningCLI saves.
_OF_COMMANDS = ("ckpt_path", "weights_only", "return_predictions", "verbose", "subcommand")


@dataclass(frozen=True)
class Project:
    """What a configuration describes, with some of its callbacks as techniques.

    Attributes:
        config: Without those callbacks.
        entries: What it says of each of them, by name.
        model: The class that the program gives to LightningCLI, if it does.
        data: Likewise.
    """

    config: dict[str, Any]
    entries: dict[str, Any]
    model: type[LightningModule] | None = None
    data: type[LightningDataModule] | None = None

    @property
    def techniques(self) -> dict[str, Callable[[], Callback]]:
        """Functions that make the techniques, by name."""
        return {name: partial(made, entry) for name, entry in self.entries.items()}

    @classmethod
    def read(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        chosen: Sequence[str] | None = None,
        *,
        needed: bool = True,
        model: type[LightningModule] | None = None,
        data: type[LightningDataModule] | None = None,
    ) -> Project:
        """Read configurations, of which later ones add to the earlier ones and replace lists.

        Classes are imported from the working folder, too.

        Args:
            paths: YAML files, with ``class_path`` for the model and the data that are not given below.
            chosen: Names of the callbacks that are techniques: their classes', with the label in brackets
                where there is one, as in ``EMAWeights[slow]``. By default all of this package.
            needed: Whether there must be techniques.
            model: What ``LightningCLI(Net, Data)`` is given: then the YAML holds the settings alone.
            data: Likewise.

        Raises:
            OSError: If a file cannot be read.
            TypeError: If one of these is no such class.
            ValueError: If it holds no such configuration, or no such callback.
        """
        _check_class("model", model, LightningModule)
        _check_class("data", data, LightningDataModule)
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as ``python -m`` does, since the classes are the user's own
        config: dict[str, Any] = {}
        for path in paths:
            config = _merged(config, _read(Path(path)))
        config = config.get("fit", config)
        if config.get("ckpt_path") is not None:
            raise ValueError(
                f"ckpt_path must be left out, for trials begin anew, got {config['ckpt_path']!r}"
            )
        config = {key: value for key, value in config.items() if key not in _OF_COMMANDS}
        if model is None and "class_path" not in (config.get("model") or {}):
            raise ValueError(
                "model must have a class_path in the configuration (model: {class_path: package.Net, "
                "init_args: {...}}), or be named where the program gives it (--model program:Net for "
                f"LightningCLI(Net, ...), and --data), got {config.get('model')!r}"
            )
        trainer = dict(config.get("trainer") or {})
        given = trainer.get("callbacks") or []
        entries = given if isinstance(given, list) else [given]
        named = _named(entries)
        picked = {
            name: index
            for name, (index, callback) in named.items()
            if (isinstance(callback, Technique) if chosen is None else name in chosen)
        }
        for name in chosen or ():
            checks.one_of("techniques", name, list(named))
        if needed and not picked:
            raise ValueError(
                "trainer.callbacks must hold techniques in the configuration, or others be chosen, got "
                f"{list(named)}"
            )
        trainer["callbacks"] = [each for index, each in enumerate(entries) if index not in picked.values()]
        config["trainer"] = trainer
        return cls(config, {name: entries[index] for name, index in picked.items()}, model, data)

    @property
    def settings(self) -> dict[str, Any]:
        """What it says, by dotted names."""
        classes = {"model class": self.model, "data class": self.data}
        named = {key: f"{kind.__module__}.{kind.__qualname__}" for key, kind in classes.items() if kind}
        return named | flat({key: value for key, value in self.config.items() if key != "seed_everything"})

    @property
    def seed(self) -> int:
        """That of the configuration; 0 if it gives none, or leaves it to chance."""
        given = self.config.get("seed_everything")
        return given if isinstance(given, int) and not isinstance(given, bool) else 0

    def build(self, seed: int) -> Setup:
        """Return the module, the data and the Trainer's settings of a trial; random states are left alone.

        Raises:
            ValueError: If the configuration cannot be built.
        """
        parts = self._parts()
        trainer = dict(parts.config_init["trainer"])
        data = parts.datamodule
        return Setup(parts.model, (None, None) if data is None else data, trainer)

    def known(self) -> dict[str, Any]:
        """Return all settings with their values, those by default included, nested.

        Raises:
            ValueError: If the configuration cannot be built.
        """
        return dict(self._parts().config.as_dict())

    def _parts(self) -> LightningCLI:
        from lightning.pytorch.cli import LightningCLI

        class Parts(LightningCLI):
            """Leaves the Trainer to whoever runs the trial."""

            def instantiate_trainer(self, **_: Any) -> Trainer:
                return None  # type: ignore[return-value]  # nobody asks for it

        with warnings.catch_warnings():
            # What it calls of jsonargparse is deprecated; and that this process has arguments of its own.
            warnings.simplefilter("ignore")
            try:
                return Parts(
                    self.model,
                    self.data,
                    save_config_callback=None,
                    parser_kwargs={"exit_on_error": False},
                    args={**deepcopy(self.config), "seed_everything": False},  # whoever runs the trial has
                    run=False,
                )
            except argparse.ArgumentError as error:
                raise ValueError(f"the configuration must be one that LightningCLI reads: {error}") from error


def _check_class(name: str, given: object, kind: type) -> None:
    if given is not None and not (isinstance(given, type) and issubclass(given, kind)):
        raise TypeError(f"{name} must be a class of {kind.__name__}, got {given!r}")


def _read(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # its types are another package

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} must be a configuration in YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a configuration in YAML, got {found!r:.80}")
    return found


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def _named(entries: Sequence[Any]) -> dict[str, tuple[int, Callback]]:
    """Return each callback and its place by its name."""
    found: dict[str, tuple[int, Callback]] = {}
    for index, entry in enumerate(entries):
        callback = made(entry)
        name = name_of(callback)
        if name in found and isinstance(callback, Technique):
            raise ValueError(f"trainer.callbacks must have a label where two are {name}")
        found.setdefault(name, (index, callback))
    return found


def made(entry: Any) -> Callback:
    """Return the callback that an entry of a configuration describes.

    Raises:
        ValueError: If it describes none.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    try:
        config = parser.parse_object({"callback": deepcopy(entry)})
    except argparse.ArgumentError as error:
        raise ValueError(f"trainer.callbacks must hold callbacks: {error}{_meant(entry)}") from error
    with warnings.catch_warnings():
        # Its newer name is not known to all versions that Lightning allows.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            found: Callback = parser.instantiate_classes(config)["callback"]
        except (TypeError, ValueError) as error:
            name = config["callback"]["class_path"].rpartition(".")[-1]
            kind = TypeError if isinstance(error, TypeError) else ValueError  # others may ask for more
            raise kind(f"{name}: {error}") from error
    return found


def _meant(entry: Any) -> str:
    """Return the settings that misspelt ones of ``entry`` look like, as the end of an error."""
    try:
        known = signature(pkgutil.resolve_name(entry["class_path"])).parameters
        unknown = [setting for setting in entry["init_args"] if setting not in known]
    except (AttributeError, ImportError, LookupError, TypeError, ValueError):
        return ""
    close = [checks.nearest(setting, known, count=1) for setting in unknown]
    meant = " and ".join(repr(name) for names in close for name in names)
    return f"; did you mean {meant}?" if meant else ""
