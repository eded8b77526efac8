"""torchdata's loaders go on within an epoch, whatever their order comes from."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from tests.lifecycle.resumed_runs import (
    BATCH,
    BATCHES,
    ENDS,
    FEW,
    SAMPLES,
    Learner,
    Samples,
    Stop,
    Stream,
    assert_exact,
)

loaders = pytest.importorskip("torchdata.stateful_dataloader")

# Shuffled validation data draw as well, so that one draw too many or too few shows.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
    # Raised in worker processes, which inherit the iterator before theirs.
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _broken_off_loaders_do_not_wait_long_for_their_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield
        gc.collect()  # else later tests wait for the last of them, five seconds for each worker


def shuffled(count: int = SAMPLES, **options: Any) -> Any:
    samples = Samples(count, disturbed=not options.get("num_workers"))
    return loaders.StatefulDataLoader(samples, batch_size=BATCH, shuffle=True, **options)


def stream(**options: Any) -> Any:
    disturbed = not options.get("num_workers")
    return loaders.StatefulDataLoader(Stream(disturbed=disturbed), batch_size=BATCH, **options)


def sampled(**options: Any) -> Any:
    sampler = DistributedSampler(Samples(), num_replicas=1, rank=0, shuffle=True)
    samples = Samples(disturbed=not options.get("num_workers"))
    return loaders.StatefulDataLoader(samples, batch_size=BATCH, sampler=sampler, **options)


class Measured(Stream):
    """A stream that tells its length, so that Lightning ends the epoch before the stream does."""

    def __len__(self) -> int:
        return SAMPLES


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stop", [*BATCHES, *ENDS], ids=str)
@pytest.mark.parametrize("data", [shuffled, stream])
def test_it_goes_on_from_every_batch(data: Callable[[], Any], stop: Stop, tmp_path: Path) -> None:
    assert_exact(data, stop, tmp_path)


KINDS: dict[str, Callable[[], Any]] = {
    "a generator of its own": lambda: shuffled(generator=torch.Generator().manual_seed(4)),
    "a sampler that is told the epoch": sampled,
    "a stream that tells its length": lambda: loaders.StatefulDataLoader(Measured(), batch_size=BATCH),
}


@pytest.mark.parametrize("stop", FEW, ids=str)
@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
def test_so_it_does_with(data: Callable[[], Any], stop: Stop, tmp_path: Path) -> None:
    assert_exact(data, stop, tmp_path)


class Both(Learner):
    """Learns from two loaders at once."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch["long"] + batch["short"], batch_idx)


@pytest.mark.parametrize("stop", FEW, ids=str)
def test_two_loaders_of_which_one_begins_again_in_between(stop: Stop, tmp_path: Path) -> None:
    assert_exact(lambda: {"long": shuffled(), "short": shuffled(12)}, stop, tmp_path, module=Both)


WORKERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: shuffled(num_workers=2),
    "kept": lambda: shuffled(num_workers=1, persistent_workers=True),
    "a stream": lambda: stream(num_workers=2),
    "a sampler that is told the epoch": lambda: sampled(num_workers=2),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stop", FEW[:2], ids=str)
@pytest.mark.parametrize("data", WORKERS.values(), ids=WORKERS)
def test_workers(data: Callable[[], Any], stop: Stop, tmp_path: Path, capsys: Any) -> None:
    assert_exact(data, stop, tmp_path)
    told = "ExactResume: what workers of the loader draw at random starts anew" in capsys.readouterr().out
    # Only where workers go on: kept ones always, those of a stream until it has told its end.
    assert told == (stop == FEW[0] or data in (WORKERS["kept"], WORKERS["a stream"]))
