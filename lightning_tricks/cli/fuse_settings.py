"""``lightning-tricks fuse``: what is asked for, by options and by a recipe in YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_tricks.cli.method_names import method_name
from lightning_tricks.cli.methods import METHODS
from lightning_tricks.core import checks
from lightning_tricks.fusion.methods import FusionMethod

__all__ = ["Asked", "asked", "bytes_of"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for.

    Args:
        models: Paths.
        method: How to fuse.
        output: Where to; ``None`` where nothing is written.
        which: See :func:`~lightning_tricks.fuse`, as for all to ``threads``.
        prefix: Of names.
        allow_missing: Whether tensors may be missing.
        allow_pickle: Whether files may hold more than tensors and plain values.
        verify: Whether to compare files with their checksums.
        force: Whether ``output`` may be there.
        sha256: Whether to write the SHA-256 of inputs down.
        max_memory: Bytes; ``None`` for the usual.
        threads: How many at a time.
        evaluate: ``MODULE:FUNCTION`` that gets a state dict and returns a number or a dict of them.
        probe: ``MODULE:FUNCTION`` that returns a :class:`~lightning_tricks.Probe`.
        compare: Whether to compare, not to fuse.
        curve: Whether to measure the line between the models, not to fuse.
        points: At how many points of each line.
        png: Where a picture of the comparison or the curve is written; ``None`` for none.
        dry_run: Whether only to show what would be done.
        json: Whether to print JSON.
    """

    models: tuple[str, ...]
    method: FusionMethod
    output: str | None = None
    which: str = "state_dict"
    prefix: str = ""
    allow_missing: bool = False
    allow_pickle: bool = False
    verify: bool = False
    force: bool = False
    sha256: bool = False
    max_memory: int | None = None
    threads: int = 2
    evaluate: str | None = None
    probe: str | None = None
    compare: bool = False
    curve: bool = False
    points: int = 11
    png: str | None = None
    dry_run: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Check types, which a recipe may not keep, and what belongs together."""
        self._check_types()
        self._check_shown()
        if not self.models:
            raise ValueError("models must hold at least one model, got none: a.ckpt b.ckpt, or a recipe")
        if self.output is None and not (self.compare or self.curve or self.dry_run):
            raise ValueError("--output must be given, such as -o fused.ckpt")

    def _check_types(self) -> None:
        for each in dataclasses.fields(self):
            if each.default is False:
                checks.flag(each.name, getattr(self, each.name))
        for name in ("output", "evaluate", "probe", "png"):
            if getattr(self, name) is not None:
                checks.text(name, getattr(self, name))

    def _check_shown(self) -> None:
        shows = [f"--{name}" for name in ("compare", "curve") if getattr(self, name)]
        if len(shows) > 1:
            raise ValueError("--compare and --curve must not go together")
        if shows and len(self.models) < 2:
            raise ValueError(f"{shows[0]} needs at least 2 models, got {len(self.models)}")
        self._check_read()
        if self.png is not None and not shows:
            raise ValueError(f"--png must go with --compare or --curve, got {self.png}")
        if self.png is not None and not Path(self.png).absolute().parent.is_dir():
            raise ValueError(f"the folder of --png must be there, got {self.png}")

    def _check_read(self) -> None:
        if self.curve and self.evaluate is None:
            raise ValueError("--evaluate must be given for --curve, got none")
        of_fusing = ("output", "dry_run", "force", "sha256", "probe")
        unread = {
            "with --compare": (*of_fusing, "evaluate") if self.compare else (),
            "with --curve": (*of_fusing, *_NOT_OF_CURVES) if self.curve else (),
            "without --curve": () if self.curve else ("points",),
        }
        for where, names in unread.items():
            for name in names:
                if getattr(self, name) != getattr(Asked, name):
                    raise ValueError(f"--{name.replace('_', '-')} must be left out {where}")


_NOT_OF_CURVES = ("allow_missing", "verify", "max_memory", "threads")


_RECIPES = (".yaml", ".yml")


def bytes_of(text: str | int) -> int:
    """Return a number of bytes that is written with or without a unit of powers of 1000.

    Raises:
        ValueError: If it is not written so.

    Example:
        >>> bytes_of("1.5GB"), bytes_of("64")
        (1500000000, 64)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kKMGT]?)B?", str(text).strip())
    if found is None:
        raise ValueError(f"max_memory must be a number of bytes, such as 500MB, got {text}")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def asked(settings: Mapping[str, Any]) -> Asked:
    """Return what the options ``settings`` ask for; those that are not given are absent.

    Raises:
        OSError: If a recipe cannot be read.
        ValueError: If something is not as it must be.
    """
    given = dict(settings)
    models = list(given.pop("models"))
    name = given.pop("method", None)
    known = {each.name for each in dataclasses.fields(Asked)}
    parameters = {key: given.pop(key) for key in [*given] if key not in known}
    recipe: dict[str, Any] = {}
    if models and models[0].endswith(_RECIPES):
        if len(models) > 1:
            raise ValueError(f"a recipe must stand alone, got {models[1]} after {models[0]}")
        recipe = _recipe(models[0])
        models = recipe.pop("models")
    inner = {"parameters": recipe.pop("parameters", parameters), "method": recipe.pop("method", "average")}
    method = built(name, parameters) if name else built(inner["method"], inner["parameters"])
    chosen = {**recipe, **given}
    if "max_memory" in chosen:
        chosen["max_memory"] = bytes_of(chosen["max_memory"])
    return Asked(**{**chosen, "models": tuple(models), "method": method})


def _recipe(path: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # jsonargparse brings it, without types

    try:
        found = yaml.safe_load(Path(path).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML; {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold models, method, parameters and output, got {found!r:.80}")
    recipe = {str(key).replace("-", "_"): value for key, value in found.items()}
    known = ("models", "method", "parameters", *(each.name for each in dataclasses.fields(Asked)))
    for key in recipe:
        checks.one_of(f"every entry of {path}", key, tuple(dict.fromkeys(known)))
    models = recipe.get("models")
    if not isinstance(models, list) or not all(isinstance(each, str) for each in models):
        raise ValueError(f"models in {path} must be a list of paths, got {models!r:.80}")
    return recipe


def built(name: object, parameters: object) -> FusionMethod:
    """Return a method by its name and parameters, among which may be methods with theirs.

    Raises:
        TypeError: If a parameter is of another type.
        ValueError: If there is no such method or parameter, or one is missing.

    Example:
        >>> built("average", {"weights": [0.25, 0.75]})
        Average(weights=(0.25, 0.75))
    """
    kind = METHODS[checks.one_of("method", name, tuple(METHODS))]
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters of {name} must be a mapping, got {parameters!r:.80}")
    known = dataclasses.fields(kind)  # type: ignore[arg-type]  # methods are dataclasses
    fields = {each.name: each for each in known if each.init}
    for key in parameters:
        checks.one_of(f"every parameter of {name}", key, tuple(fields))
    for key, each in fields.items():
        needed = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if needed and key not in parameters:
            raise ValueError(f"{key} must be given for {name}: --{key}, or under parameters in a recipe")
    return kind(**{key: _value(value) for key, value in parameters.items()})


def _value(value: Any) -> Any:
    value = value.as_dict() if hasattr(value, "as_dict") else value  # of the parser, within lists
    for kind, inner in (("method", "parameters"), ("class_path", "init_args")):  # ours, LightningCLI's
        if isinstance(value, dict) and kind in value:
            for key in value:
                checks.one_of(f"every entry of {value[kind]}", key, (kind, inner))
            name = value[kind] if kind == "method" else method_name(str(value[kind]).rpartition(".")[2])
            return built(name, value.get(inner, {}))
    if isinstance(value, dict):
        return {key: _value(each) for key, each in value.items()}
    return tuple(map(_value, value)) if isinstance(value, list | tuple) else value
