"""The commands: of each its options, and what it does with them.

What only one of them needs is loaded when that is called: help and completion load neither torch nor
Lightning.
"""

from lightning_tricks.cli.commands.command import Command, new_parser
from lightning_tricks.cli.commands.looking import CARD, CITE, COMPLETION, LIST
from lightning_tricks.cli.commands.models import EMA, FUSE
from lightning_tricks.cli.commands.projects import ABLATE, GROUPS, SEARCH
from lightning_tricks.cli.commands.training import DEMO, RECIPE, SCHEDULE

__all__ = ["COMMANDS", "Command", "new_parser"]

COMMANDS = {
    "list": LIST,
    "card": CARD,
    "cite": CITE,
    "demo": DEMO,
    "schedule": SCHEDULE,
    "recipe": RECIPE,
    "groups": GROUPS,
    "ablate": ABLATE,
    "search": SEARCH,
    "ema": EMA,
    "fuse": FUSE,
    "completion": COMPLETION,
}
