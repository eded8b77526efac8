"""The lines of the README's section on moving over, to be run as they stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning import pytorch
from torch.optim import lr_scheduler

import lightning_tricks as lt
from benchmarks.peers.loop import composers, timms
from benchmarks.peers.small import Net
from tests.toys import trainer

__all__ = ["PEERS", "Row", "rows"]

README = Path(__file__).parents[2] / "README.md"


def lightnings() -> dict[str, Any]:
    """Return Lightning's callbacks, torch's schedulers, and a quiet Trainer."""
    return {**vars(lr_scheduler), **vars(pytorch.callbacks), "Trainer": trainer}


def schedulers() -> dict[str, Any]:
    """Return what is finetuning-scheduler's."""
    from finetuning_scheduler import FinetuningScheduler

    return {"FinetuningScheduler": FinetuningScheduler}


# By whom the README names: the distribution, and the names of its lines.
PEERS = {
    "": ("lightning", lightnings),
    "finetuning-scheduler": ("finetuning-scheduler", schedulers),
    "timm": ("timm", timms),
    "Composer": ("mosaicml", composers),
}


@dataclass(frozen=True)
class Row:
    """One of the table: whose line, the line, what to write instead, and what else changes."""

    whose: str
    before: str
    after: str
    note: str

    def theirs(self, **given: Any) -> Any:
        """Run the line of before."""
        return eval(self.before, {**PEERS[self.whose][1](), **given})

    def ours(self) -> Any:
        """Run our line."""
        return eval(self.after, {**{name: getattr(lt, name) for name in lt.__all__}, "model": Net()})

    def alike(self) -> Any:
        """Run it with the settings that the row names."""
        found = re.search(r"the same with `([^`]*)`", self.note)
        return replace(self.ours(), **(eval(f"dict({found[1]})") if found else {}))


def rows() -> list[Row]:
    """Return the table."""
    _, _, table = README.read_text().partition("| instead of | write | what else changes |")
    row = r"^\| (?:([\w-]+), )?`([^`]*)` \| `([^`]*)` \|(.*)\|$"
    return [Row(*found) for found in re.findall(row, table.partition("\n\n")[0], re.MULTILINE)]
