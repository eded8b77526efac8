"""Further processes that work on the same study, without a word."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["workers"]

_PATIENCE_SECONDS = 20.0  # for a step in progress, after which Lightning stops


@contextmanager
def workers(count: int, program: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Run ``program`` in ``count`` processes, too; what one of them leaves undone, this one does.

    Args:
        count: Of processes beside this one.
        program: In Python; gets the settings on its standard input, as JSON.
        settings: Plain values.
    """
    helpers = []
    for _ in range(count):
        helper = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is told below, once
        )
        assert helper.stdin is not None
        helper.stdin.write(json.dumps(dict(settings)).encode())
        helper.stdin.close()
        helpers.append(helper)
    try:
        yield
    except BaseException:
        for helper in helpers:
            helper.send_signal(signal.SIGINT)
        for helper in helpers:
            _stopped(helper)
        raise
    for helper in helpers:
        helper.wait()  # for the trial in which it is


def _stopped(helper: subprocess.Popen[bytes]) -> None:
    try:
        helper.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()
