"""``import lightning_tricks`` loads no optional package that Lightning itself does not load."""

import subprocess
import sys

from tests.architecture.test_layers import OPTIONAL

ADDED = "import sys, lightning; before = set(sys.modules); {}; print(*set(sys.modules) - before)"


def optional_added_by(statement: str) -> set[str]:
    """Return the optional packages that ``statement`` loads after ``import lightning``."""
    command = [sys.executable, "-c", ADDED.format(statement)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return OPTIONAL & {module.partition(".")[0] for module in loaded}


def test_the_package_loads_no_optional_package():
    assert optional_added_by("import lightning_tricks") == set()


def test_an_optional_package_is_seen():
    assert optional_added_by("import jsonargparse") == {"jsonargparse"}
