"""Where trials are kept, so that several processes and machines see the same ones: Optuna's storages."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.core.extras import extra

try:
    import fcntl
except ModuleNotFoundError:  # not a system of Unix's kind
    fcntl = None  # type: ignore[assignment]

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
    path = Path(where).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), _lock_of(path)))


def _lock_of(path: Path) -> Any:
    if fcntl is not None:
        return _JournalLock(path)
    from optuna.storages.journal import JournalFileOpenLock

    return JournalFileOpenLock(str(path))


class _JournalLock:
    """A lock on a journal that the system takes back when its process ends, however that ends.

    Those that come with Optuna stay behind when their holder is killed: others wait half a minute for it. A
    last line that was never finished, because of a power cut for example, is taken away before more is
    written, for it would spoil the next one.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, -1

    def acquire(self) -> bool:
        held = os.open(self._path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(held, fcntl.LOCK_EX)
        self._held = held
        size = os.fstat(held).st_size
        if size and os.pread(held, 1, size - 1) != b"\n":
            os.ftruncate(held, self._path.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        os.close(self._held)


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
    """Keep from the terminal what Optuna tells of each trial, and of packages that would make it faster."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
