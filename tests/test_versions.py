"""The oldest versions that are allowed are those that `make test-oldest` installs; what tests need."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOR_USERS = ("plots", "demo", "schedulefree", "surgery")  # the others are for work on the package itself


def lower_bounds(requirements: Iterable[str]) -> Iterator[tuple[str, Version]]:
    """Yield the name and the oldest allowed version of each requirement."""
    for requirement in map(Requirement, requirements):
        [bound] = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        yield requirement.name, bound


def pins(text: str) -> dict[str, Version]:
    """Return the version of each package that a file of constraints names."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_each_lower_bound_is_the_version_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][extra] for extra in FOR_USERS]
    allowed = list(lower_bounds([*project["dependencies"], *(line for extra in extras for line in extra)]))
    tested = pins((ROOT / "constraints-oldest.txt").read_text())
    assert len(allowed) > 6
    assert allowed == [(name, tested.get(name)) for name, _ in allowed]


@pytest.mark.xdist_group("any")
def test_pytest_tells_xdist_of_groups(request: pytest.FixtureRequest) -> None:
    # Else each process would make the long runs that many tests look at.
    assert request.node.nodeid.endswith("@any") or not request.config.getoption("loadgroup", False)
