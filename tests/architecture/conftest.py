"""What the rules look at, parsed once for the tests of a file."""

import pytest

from tests.architecture.sources import PACKAGE, Source, sources


@pytest.fixture(scope="module")
def package() -> list[Source]:
    """Every file of the package."""
    return sources(PACKAGE)
