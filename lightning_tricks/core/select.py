"""Which weights: name patterns, module types and predicates, turned into named parameters.

A pattern is written as in a shell: ``*`` stands for any characters (dots included), ``?`` for one,
``[ab]`` for one of a set. It selects a parameter when it matches the parameter's whole name or the
whole name of a module that holds it: ``"head"`` takes ``head.weight`` and ``head.bias``, never
``head2.weight``. A weight that torch parametrizes goes by its plain name, too: ``"head.weight"`` takes
``head.parametrizations.weight.original``.

A slice takes children by position, counted as in Python, those without parameters included:
``"body[:-3]"`` stands for all but the last three children of ``body``, ``"blocks[2:4].attention"`` for a
part of two of them, ``"[-1:]"`` for the module's own last. A module type may be written by its path:
``"torch.nn.LayerNorm"``.
"""

from __future__ import annotations

import fnmatch
import glob
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn

from lightning_tricks.core import checks

__all__ = [
    "Pattern",
    "Patterns",
    "as_patterns",
    "clean_name",
    "matches",
    "resolved",
    "select",
    "select_layers",
]

Pattern = str | type[nn.Module] | Callable[[str, Tensor], bool]
"""One way to name weights; a callable gets a parameter's clean name and the parameter."""
# Tuples before callables: LightningCLI writes a setting down as the first type that takes it.
Patterns = str | tuple[Pattern, ...] | type[nn.Module] | Callable[[str, Tensor], bool]

# What torch.compile and the wrappers of torch.distributed put into names. None of it is the user's.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original$")
_SLICE = re.compile(r"\[(-?\d+)?:(-?\d+)?\]")


def clean_name(name: str) -> str:
    """Return ``name`` without what compilation and sharding put into it.

    Example:
        >>> clean_name("net._orig_mod.0.weight")
        'net.0.weight'
    """
    return _WRAPPERS.sub("", name).lstrip(".")


def as_patterns(name: str, value: object) -> tuple[Pattern, ...]:
    """Return ``value`` as a tuple of patterns.

    Raises:
        TypeError: If an entry is no pattern.
        ValueError: If there is no entry, or an empty string among them.
    """
    entries = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not entries:
        raise ValueError(f"{name} must name at least one pattern, got {value!r}")
    for entry in entries:
        if isinstance(entry, nn.Module) or not (isinstance(entry, str | type) or callable(entry)):
            raise TypeError(f"{name} must hold name patterns, module types or callables, got {entry!r}")
        if isinstance(entry, str) and not entry:
            raise ValueError(f"{name} must not hold an empty pattern, got {value!r}")
        if isinstance(entry, type) and not issubclass(entry, nn.Module):
            raise TypeError(f"{name} must hold subclasses of torch.nn.Module, got {entry!r}")
    return entries


def select(module: nn.Module, patterns: Patterns, *, name: str = "params") -> dict[str, nn.Parameter]:
    """Return the parameters of ``module`` that any of ``patterns`` matches, in the module's order.

    A tied parameter is returned once, under its first name, whichever of its names matched.

    Args:
        module: Searched with all its children; wrappers of compilation and sharding are seen through.
        patterns: One pattern or several.
        name: What the user calls the setting, for errors.

    Raises:
        ValueError: If a pattern matches nothing; lists the nearest names.

    Example:
        >>> list(select(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "1"))
        ['1.weight', '1.bias']
        >>> list(select(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.Linear))
        ['0.weight', '0.bias']
    """
    first_name: dict[nn.Parameter, str] = {}
    aliases: dict[nn.Parameter, list[str]] = {}
    for raw, parameter in module.named_parameters(remove_duplicate=False):
        clean = clean_name(raw)
        first_name.setdefault(parameter, clean)
        aliases.setdefault(parameter, []).append(clean)
        if _PARAMETRIZED.search(clean):
            aliases[parameter].append(_PARAMETRIZED.sub(r"\1\2", clean))
    chosen: set[nn.Parameter] = set()
    for pattern in as_patterns(name, patterns):
        hits = {p for each in resolved(module, pattern) for p in _hits(module, each, aliases)}
        if not hits:
            raise ValueError(_no_match(name, pattern, module))
        chosen |= hits
    return {first_name[parameter]: parameter for parameter in first_name if parameter in chosen}


def select_layers(
    module: nn.Module,
    patterns: Patterns,
    wanted: Callable[[nn.Module], bool],
    *,
    what: str,
    name: str = "params",
) -> dict[str, nn.Module]:
    """Return the layers of ``module`` that any of ``patterns`` matches, by their first names, in its order.

    A pattern selects a layer when it matches the name of the layer or of a module that holds it, or when it
    is the type of one of these. A callable gets a layer's clean name and the layer.

    Args:
        module: Searched with all its children; wrappers of compilation and sharding are seen through.
        patterns: One pattern or several.
        wanted: Which layers come into question.
        what: What these are, with an article, for errors.
        name: What the user calls the setting, for errors.

    Raises:
        ValueError: If a pattern matches none; lists the nearest names.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.1)))
        >>> list(select_layers(net, "1", lambda layer: hasattr(layer, "p"), what="a dropout layer"))
        ['1.0']
    """
    paths = [(path, layer) for path, layer in module.named_modules(remove_duplicate=False) if wanted(layer)]
    chosen: set[nn.Module] = set()
    for pattern in as_patterns(name, patterns):
        alike = resolved(module, pattern)
        hits = {layer for path, layer in paths if any(_takes(each, module, path, layer) for each in alike)}
        if not hits:
            known = list(dict.fromkeys(clean_name(path) for path, _ in paths))
            raise ValueError(_nothing(name, pattern, known, what, type(module).__name__))
        chosen |= hits
    found: dict[nn.Module, str] = {}
    for path, layer in paths:
        if layer in chosen:
            found.setdefault(layer, clean_name(path))
    return {path: layer for layer, path in found.items()}


def _takes(pattern: Pattern, module: nn.Module, path: str, layer: nn.Module) -> bool:
    if isinstance(pattern, str):
        return matches(pattern, clean_name(path))
    if isinstance(pattern, type):
        return any(isinstance(module.get_submodule(holder), pattern) for holder in ["", *_prefixes(path)])
    return bool(pattern(clean_name(path), layer))  # type: ignore[arg-type]  # those of weights get a tensor


def resolved(module: nn.Module, pattern: Pattern) -> list[Pattern]:
    """Return what together selects in ``module`` what ``pattern`` does, without slices and paths of types.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
        >>> resolved(net, "1[-1:].bias"), resolved(net, "torch.nn.Linear")
        (['1.1.bias'], [<class 'torch.nn.modules.linear.Linear'>])
    """
    if not isinstance(pattern, str):
        return [pattern]
    path, _, name = pattern.rpartition(".")
    # Nothing is imported: the class of a layer has been.
    kind = getattr(sys.modules.get(path), name, None)
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return [kind]
    return list(_unsliced(pattern, _children(module) if _SLICE.search(pattern) else {}))


def _unsliced(pattern: str, children: dict[str, list[str]]) -> Iterator[str]:
    if not (cut := _SLICE.search(pattern)):
        yield pattern
        return
    first, last = (int(index) if index else None for index in cut.groups())
    for path, names in children.items():
        if fnmatch.fnmatchcase(path, pattern[: cut.start()]):
            for name in names[first:last]:
                yield from _unsliced(glob.escape(name) + pattern[cut.end() :], children)


def _children(module: nn.Module) -> dict[str, list[str]]:
    """Return the clean names of each module's children, by the module's own."""
    names = dict.fromkeys(clean_name(raw) for raw, _ in module.named_modules(remove_duplicate=False))
    found: dict[str, list[str]] = {}
    for name in names:
        if name:
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _hits(
    module: nn.Module, pattern: Pattern, aliases: dict[nn.Parameter, list[str]]
) -> Iterable[nn.Parameter]:
    if isinstance(pattern, type):
        return _of_type(module, pattern)
    return [parameter for parameter, names in aliases.items() if _any_name(pattern, names, parameter)]


def matches(pattern: str, name: str) -> bool:
    """Return whether ``pattern`` matches ``name`` or a module that holds it.

    Example:
        >>> matches("layer1", "layer1.0.weight"), matches("layer1", "layer10.weight")
        (True, False)
    """
    # The module that is searched has no name itself, but may be all there is.
    return any(fnmatch.fnmatchcase(part, pattern) for part in list(_prefixes(name)) or [""])


def _prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _any_name(pattern: Pattern, names: Iterable[str], parameter: nn.Parameter) -> bool:
    if isinstance(pattern, str):
        return any(matches(pattern, name) for name in names)
    return any(bool(pattern(name, parameter)) for name in names)


def _of_type(module: nn.Module, kind: type) -> set[nn.Parameter]:
    return {p for child in module.modules() if isinstance(child, kind) for p in child.parameters()}


def _no_match(name: str, pattern: Pattern, module: nn.Module) -> str:
    parameters = [clean_name(raw) for raw, _ in module.named_parameters()]
    return _nothing(name, pattern, parameters, "a parameter", type(module).__name__)


def _nothing(name: str, pattern: Pattern, names: list[str], what: str, module: str) -> str:
    if not names:
        return f"{name} must match {what}, got {pattern!r}, but {module} has none"
    known = dict.fromkeys(prefix for full in names for prefix in _prefixes(full))
    close = checks.nearest(str(pattern), known, count=5) or names[:5]
    listed = ", ".join(repr(entry) for entry in close)
    return (
        f"{name} must match {what}, got {pattern!r}, which matches none{_meant(pattern)}; nearest: {listed}"
    )


def _meant(pattern: Pattern) -> str:
    """Return what may have been meant, where a pattern looks like one of another notation."""
    if not isinstance(pattern, str):
        return ""
    if index := re.search(r"\[(-?\d+)\]", pattern):
        start, end = pattern[: index.start()], int(index[1]) + 1
        return f": a child by its position is a slice, as in '{start}[{index[1]}:{end or ''}]'"
    if pattern.startswith("nn.") and hasattr(nn, pattern[3:]):
        return f": a type has its whole path, 'torch.{pattern}'"
    return ""
