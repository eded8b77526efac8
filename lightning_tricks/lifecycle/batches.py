"""How many samples a batch of training has."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.data import _extract_batch_size

__all__ = ["samples_of"]


def samples_of(trainer: Trainer, batch: Any) -> int:
    """Return how many samples all processes together have in this batch, as far as one of them can tell.

    The size is that of the first dimension of the batch's first tensor, times the number of processes that
    get data of their own: no process waits for the others to tell theirs.

    Args:
        trainer: The Trainer of the run.
        batch: As ``training_step`` takes it; ``None`` for one that is left out.

    Raises:
        ValueError: If the batch holds no tensor.
    """
    if batch is None:
        return 0
    # The first that is found, as Lightning logs by, without its advice for logging where others differ.
    own = next((size for size in _extract_batch_size(batch) if size is not None), None)
    if own is None:
        raise ValueError(
            "a batch must hold a tensor whose first dimension counts samples, or lengths be given in steps, "
            f"got a {type(batch).__name__} without"
        )
    return own * _data_processes(trainer)


def _data_processes(trainer: Trainer) -> int:
    """Return among how many processes the data are divided; those of tensor parallelism share theirs."""
    sampling: dict[str, int] = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return sampling.get("num_replicas", trainer.world_size)
