"""Fusing from the command line loads no Lightning. What the package loads, its tests of packaging show."""

import subprocess
import sys

import torch


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
