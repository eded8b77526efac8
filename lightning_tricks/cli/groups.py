"""``lightning-tricks groups``: the parameter groups with which a LightningCLI project begins to train."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim import Optimizer

from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.core.checks import listed
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.study.project import Project
from lightning_tricks.study.quiet import no_words, trained_quietly
from lightning_tricks.study.trial import seeded_setup, trial_folder, trial_trainer
from lightning_tricks.updates.group_table import GROUP_COLUMNS, group_facts, group_rows, in_force
from lightning_tricks.updates.parameter_groups import Group

__all__ = ["show_groups", "wildcards"]

# Groups are the same wherever they are trained, and here need be no devices.
_HERE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "logger": None}


class _Seen(Exception):  # noqa: N818  # no error: it ends what has shown what is asked for
    """The groups are there."""


@dataclass(eq=False)
class _Look(Callback):
    """Takes the groups down where training would begin, and ends it."""

    optimizers: list[tuple[Optimizer, list[Group]]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        self.optimizers = [(each, list(self._groups(each))) for each in trainer.optimizers]
        raise _Seen

    def _groups(self, optimizer: Optimizer) -> Iterator[Group]:
        for index, own in enumerate(optimizer.param_groups):
            members = {
                self.names.get(id(each), f"unnamed {at}"): each for at, each in enumerate(own["params"])
            }
            holds = wildcards(members, self.names.values())
            more = f" and {len(holds) - 1} more" if len(holds) > 1 else ""
            yield Group(str(own.get("name", index)), f"{holds[0]}{more}", {}, members)

    def left(self) -> list[str]:
        """Return the names of parameters that are in no group."""
        held = {name for _, groups in self.optimizers for group in groups for name in group.members}
        return [name for name in self.names.values() if name not in held]


def wildcards(names: Collection[str], known: Iterable[str], prefix: str = "") -> list[str]:
    """Return patterns that match ``names`` and nothing else of ``known``.

    Example:
        >>> wildcards(["body.0.weight", "body.0.bias", "head.bias"],
        ...           ["body.0.weight", "body.0.bias", "head.bias", "head.weight"])
        ['body.*', 'head.bias']
    """
    known = list(known)
    if len(known) > 1 and set(known) <= set(names):
        return [f"{prefix}*"]
    found = []
    for part in dict.fromkeys(name[len(prefix) :].partition(".")[0] for name in names):
        inner = f"{prefix}{part}."
        below = [name for name in names if name.startswith(inner)]
        if below:
            found += wildcards(below, [name for name in known if name.startswith(inner)], inner)
        else:
            found.append(f"{prefix}{part}")
    return found


def show_groups(project: Project, *, as_json: bool) -> None:
    """Print the groups of ``project``.

    Raises:
        RefusedError: If it cannot be made ready for training.
    """
    name, look = _dry_run(project)
    left = look.left()
    if as_json:
        print(
            json.dumps(
                {"optimizers": [_plain(*each) for each in look.optimizers], "in_no_group": left}, indent=1
            )
        )
        return
    for optimizer, groups in look.optimizers:
        title = f"{name}: {in_force(optimizer)}"
        print(text_table(title, GROUP_COLUMNS, group_rows(optimizer, groups)))
        begin = [_first(own) for own in optimizer.param_groups]
        if any(each != 1.0 for each in begin):
            span = f"{min(begin):.4g}" + (f" to {max(begin):.4g}" if min(begin) < max(begin) else "")
            print(f"at the first step schedules multiply these rates by {span}")
    if not look.optimizers:
        print(f"{name} has no optimizer")
    elif left:
        print(f"in no group, and so never changed: {listed(left)}")


def _dry_run(project: Project) -> tuple[str, _Look]:
    """Begin to train, and return the name of the module and what was seen."""
    look = _Look()
    with no_words(), isolate_rng(), trial_folder() as folder:
        try:
            setup = seeded_setup(project.build, 0)
            trainer = trial_trainer({**setup.trainer, **_HERE}, folder, [look], [])
            with trained_quietly(trainer):
                if isinstance(setup.data, LightningDataModule):
                    trainer.fit(setup.module, datamodule=setup.data)
                else:
                    trainer.fit(setup.module)
        except _Seen:
            pass
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise RefusedError(str(error)) from error
    return type(setup.module).__name__, look


def _first(own: Mapping[str, Any]) -> float:
    """Return what a group's rate is multiplied by at the first step."""
    base = float(own.get("initial_lr", own.get("lr", 0.0)))
    return float(own["lr"]) / base if base else 1.0


def _plain(optimizer: Optimizer, groups: list[Group]) -> dict[str, Any]:
    return {
        "optimizer": type(optimizer).__name__,
        "groups": [
            {**told._asdict(), "first_factor": _first(own), "names": list(group.members)}
            for told, own, group in zip(
                group_facts(optimizer, groups), optimizer.param_groups, groups, strict=True
            )
        ],
    }
