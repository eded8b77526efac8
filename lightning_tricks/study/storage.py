"""Where trials are kept, so that several processes and machines see the same ones: Optuna's storages."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_tricks.core.extras import extra

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["open_storage", "quiet_optuna", "shown"]

_TRIES = 6


def open_storage(where: str | os.PathLike[str]) -> BaseStorage:
    """Return the storage at ``where``, made if it is not there.

    Args:
        where: A file, in which every change is one line; or the URL of a database, such as
            ``postgresql://user@host/name``.

    Raises:
        ModuleNotFoundError: If Optuna or the database's driver is not installed.
        OSError: If the file or the database is out of reach.
    """
    with extra("study"):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

    if "://" in str(where):
        return _database(str(where))
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    backend = JournalFileBackend(str(path))
    _mend(path)
    return JournalStorage(backend)


def _mend(path: Path) -> None:
    """Take away a last line that was never finished, because of a power cut for example.

    What is written after it would make a line of it that nobody can read.
    """
    from optuna.storages.journal import JournalFileSymlinkLock
    from optuna.storages.journal._file import get_lock_file

    with path.open("rb+") as file:
        if not _is_torn(file.read()):
            return
        with get_lock_file(JournalFileSymlinkLock(str(path))):  # others write whole lines under this lock
            file.seek(0)
            if _is_torn(content := file.read()):
                file.truncate(content.rfind(b"\n") + 1)


def _is_torn(content: bytes) -> bool:
    return bool(content) and not content.endswith(b"\n")


def _database(url: str) -> BaseStorage:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    for left in reversed(range(_TRIES)):
        try:
            return RDBStorage(url)
        except ArgumentError:
            raise ValueError(f"storage must be a file or the URL of a database, got {shown(url)!r}") from None
        except ImportError as error:
            driver = getattr(error.__cause__, "name", None) or "the driver of the database"
            raise ModuleNotFoundError(
                f'{driver} must be installed to use {shown(url)}, such as by pip install "lightning_tricks'
                '[postgres]"'
            ) from error
        except (SQLAlchemyError, StorageInternalError) as error:
            if not left:
                reason = str(error).partition("\n")[0]
                raise ConnectionError(f"storage {shown(url)} must be in reach: {reason}") from error
            # Of two processes that make the same tables at once, one fails, and finds them next time.
            time.sleep(random.uniform(0.05, 0.3))
    raise AssertionError


def shown(where: str | os.PathLike[str]) -> str:
    """Return ``where`` without a password, for people to read.

    Example:
        >>> shown("postgresql://me:secret@host/trials")
        'postgresql://me:***@host/trials'
        >>> shown("study.journal")
        'study.journal'
    """
    head, mark, rest = str(where).partition("://")
    account, at, place = rest.rpartition("@")
    if not (mark and at and ":" in account):
        return str(where)
    return f"{head}://{account.partition(':')[0]}:***@{place}"


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep from the terminal what Optuna tells of each trial."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(level)
