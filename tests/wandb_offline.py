"""A reader of the files in which W&B keeps offline runs.

``run-ID.wandb`` begins with 7 bytes of its own and goes on as a LevelDB log: blocks of 32 KiB hold chunks,
each after a header of 7 bytes: checksum 4, length 2, kind 1 (whole, first, middle, last).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32 * 1024, 7
WHOLE, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a ``.wandb`` file."""
    data, at, record = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if (rest := BLOCK - at % BLOCK) < HEADER:  # too short for a header: zeros
            at += rest
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += HEADER + length
        record += data[at - length : at]
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)
            record = b""


def config(path: Path) -> dict[str, Any]:
    """Return the settings of a run."""
    updates = [
        item for record in records(path) for item in (*record.run.config.update, *record.config.update)
    ]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def history(path: Path) -> dict[str, list[Any]]:
    """Return for each metric of a run the values that were logged, in their order."""
    values: dict[str, list[Any]] = {}
    for record in records(path):
        for item in record.history.item:
            values.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    return values


def summary(path: Path) -> dict[str, Any]:
    """Return the final values of a run, as they were set."""
    updates = [item for record in records(path) for item in record.summary.update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
