"""What users install, in a place where no repository is: the wheel, built from the sdist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import lightning_tricks
from tests.architecture.test_layers import OPTIONAL

ROOT = Path(__file__).parents[1]
NAME = f"lightning_tricks-{lightning_tricks.__version__}"
# One process, because most of its time goes into Lightning.
LOADING = """
import lightning, sys, time
def loaded(statement):
    before = set(sys.modules)
    exec(statement, globals())
    print(*(set(sys.modules) - before))
began = time.process_time()
loaded("import lightning_tricks")
print(time.process_time() - began)
loaded("for name in lightning_tricks.__all__: getattr(lightning_tricks, name)")
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("lightning_tricks")))
loaded("import jsonargparse")
"""


def python(*arguments: str, where: Path, path: Path | None = None) -> str:
    """Run Python in ``where``, with ``path`` before what is installed, and return what it printed."""
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = outside if path is None else {**outside, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    python("-c", f"from hatchling.build import *; build_sdist({str(folder)!r})", where=ROOT)
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / NAME


@pytest.fixture(scope="module")
def installed(sdist: Path) -> Path:
    """Where the wheel that the sdist makes is installed."""
    python("-c", "from hatchling.build import *; build_wheel('dist')", where=sdist)
    wheel, target = sdist / "dist" / f"{NAME}-py3-none-any.whl", sdist.parent / "installed"
    offline = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet")
    python("-m", "pip", "install", *offline, "--target", str(target), str(wheel), where=sdist.parent)
    return target


def test_the_sdist_holds_what_its_tests_need(sdist: Path) -> None:
    sources = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")}
    text = "\n".join(sources.values())
    needed = {
        entry.name
        for entry in ROOT.iterdir()
        if re.search(rf'^(from|import) {re.escape(entry.name)}\b|"{re.escape(entry.name)}["/]', text, re.M)
    }
    assert needed >= {"benchmarks", "lightning_tricks", "tests", "Makefile", "README.md", "pyproject.toml"}
    assert needed <= {entry.name for entry in sdist.iterdir()}
    for path in [*sources, *(ROOT / "lightning_tricks").rglob("*.py")]:
        assert (sdist / path.relative_to(ROOT)).exists(), path


def test_it_is_light_whole_and_from_where_it_is_installed(installed: Path) -> None:
    added, seconds, by_names, files, seen = python(
        "-c", LOADING, where=installed.parent, path=installed
    ).splitlines()
    assert float(seconds) < 0.06
    assert all(path.startswith(str(installed)) for path in files.split())
    assert len(files.split()) > 100
    optional = [
        OPTIONAL & {name.partition(".")[0] for name in each.split()} for each in (added, by_names, seen)
    ]
    assert optional == [set(), set(), {"jsonargparse"}]  # the last shows that it can be seen


def test_the_command_runs(installed: Path) -> None:
    told = python(
        str(installed / "bin" / "lightning-tricks"), "--help", where=installed.parent, path=installed
    )
    assert told.startswith("usage: lightning-tricks")


def test_it_brings_its_types_licence_and_description(installed: Path) -> None:
    about = installed / f"{NAME}.dist-info"
    metadata: Message = Parser().parsestr((about / "METADATA").read_text("utf-8"))
    assert (installed / "lightning_tricks" / "py.typed").exists()
    assert (about / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == lightning_tricks.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload() == (ROOT / "README.md").read_text("utf-8")
    assert {path.name for path in installed.iterdir()} == {"bin", "lightning_tricks", about.name}
