"""A ready list of techniques that says where each of its settings comes from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from lightning_tricks.lifecycle.configuration import as_plain
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.written import written

__all__ = ["GIVEN", "Recipe"]

GIVEN = "yours"
"""What stands in place of the source of a setting that no literature gave."""

_COLUMNS: dict[str, Literal["left"]] = {
    "technique": "left",
    "setting": "left",
    "value": "left",
    "source": "left",
}


class Recipe(list[Technique]):
    """Techniques for ``Trainer(callbacks=...)``, with the source of each setting.

    A list as any other: leave techniques out, put others in, change the settings of those that there are.
    Printed, it is a table of the settings that are no defaults or have a source; one that was changed is
    ``yours``.

    Args:
        name: What the table is called.
        techniques: Each with the sources of its settings, by name.

    Raises:
        ValueError: If a source is of no setting.

    Example:
        >>> from lightning_tricks import GradientClip
        >>> recipe = Recipe("short", [(GradientClip(max_norm=0.25), {"max_norm": "a paper, section 2"})])
        >>> print(recipe)
        short
        | technique    | setting  | value | source             |
        |--------------|----------|-------|--------------------|
        | GradientClip | max_norm | 0.25  | a paper, section 2 |
        >>> recipe[0].max_norm = 0.5
        >>> print(recipe.yaml())
        trainer:
          callbacks:
            - class_path: lightning_tricks.GradientClip
              init_args:
                max_norm: 0.5  # yours
    """

    def __init__(self, name: str, techniques: Iterable[tuple[Technique, Mapping[str, str]]]) -> None:
        """Keep the values that the sources are for."""
        pairs = list(techniques)
        super().__init__(technique for technique, _ in pairs)
        self.name = name
        self._sources: dict[tuple[str, str], tuple[str, str]] = {}
        for technique, sources in pairs:
            values = technique.settings()
            for setting, source in sources.items():
                if setting not in values:
                    raise ValueError(f"{technique.state_key} has no setting {setting!r} for {source!r}")
                self._sources[technique.state_key, setting] = values[setting], source

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the technique, the setting, its value and its source of each row of the table."""
        return [
            (technique.state_key, setting, value, source)
            for technique in self._techniques()
            for setting, value, source in self._settings(technique)
        ]

    def __str__(self) -> str:
        return text_table(self.name, _COLUMNS, self.rows())

    def yaml(self) -> str:
        """Return what a configuration of LightningCLI needs to have these techniques, sources as comments.

        Raises:
            ValueError: If a setting is a function, which YAML cannot hold.
        """
        import yaml  # type: ignore[import-untyped]  # its types are another package

        lines = ["trainer:", "  callbacks:"]
        for technique in self._techniques():
            plain = as_plain(technique, technique.state_key)
            lines.append(f"    - class_path: {plain['class_path']}")
            settings = self._settings(technique)
            lines += ["      init_args:"] * bool(settings)
            for setting, _, source in settings:
                value = yaml.safe_dump(plain["init_args"][setting], default_flow_style=True, width=math.inf)
                lines.append(f"        {setting}: {value.partition(chr(10))[0]}  # {source}")
        return "\n".join(lines)

    def _techniques(self) -> list[Technique]:
        # The Trainer appends its own callbacks to the list that it is given.
        return [each for each in self if isinstance(each, Technique)]

    def _settings(self, technique: Technique) -> list[tuple[str, str, str]]:
        """Return name, value and source of the settings to be shown."""
        shown = []
        for setting, value in technique.settings().items():
            sourced, source = self._sources.get((technique.state_key, setting), (None, ""))
            if value == sourced or value != _default(technique, setting):
                shown.append((setting, value, source if value == sourced else GIVEN))
        return shown


def _default(technique: Technique, setting: str) -> str:
    entry = next(each for each in dataclasses.fields(technique) if each.name == setting)
    factory = entry.default_factory
    return written(entry.default if factory is dataclasses.MISSING else factory())
