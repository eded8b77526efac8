"""``import lightning_tricks`` loads no optional package that Lightning itself does not load."""

import subprocess
import sys

import torch

from tests.architecture.test_layers import OPTIONAL

ADDED = "import sys, lightning; before = set(sys.modules); {}; print(*set(sys.modules) - before)"


def optional_added_by(statement: str) -> set[str]:
    """Return the optional packages that ``statement`` loads after ``import lightning``."""
    command = [sys.executable, "-c", ADDED.format(statement)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return OPTIONAL & {module.partition(".")[0] for module in loaded}


def test_the_package_loads_no_optional_package():
    assert optional_added_by("import lightning_tricks") == set()


def test_fusing_from_the_command_line_loads_no_lightning(tmp_path):
    for index in range(2):
        torch.save({"state_dict": {"w": torch.full((3,), float(index))}}, tmp_path / f"{index}.ckpt")
    paths = [str(tmp_path / name) for name in ("0.ckpt", "1.ckpt", "fused.ckpt")]
    statement = (
        "import sys; from lightning_tricks.cli import main; "
        f"main(['fuse', *{paths[:2]}, '--method', 'average', '-o', {paths[2]!r}]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    assert "written" in done.stdout
    assert not {"lightning", "torch.distributed.tensor", "torch._dynamo"} & set(done.stderr.split())


def test_help_and_what_tells_of_the_package_load_no_torch():
    calls = [["--help"], ["list"], ["card", "EMAWeights"], ["cite", "Ties"], ["completion", "csh"]]
    calls += [
        [command, "--help"] for command in ("schedule", "recipe", "groups", "ablate", "search", "ema", "fuse")
    ]
    statement = (
        "import sys; from lightning_tricks.cli import main; "
        f"codes = [main(call) for call in {calls}]; print(sum(codes), *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    codes, *loaded = done.stderr.splitlines()[-1].split()
    assert codes == "2"  # of the shell that there is no script for
    assert not {"torch", "lightning", "numpy"} & set(loaded)


def test_an_optional_package_is_seen():
    assert optional_added_by("import jsonargparse") == {"jsonargparse"}
