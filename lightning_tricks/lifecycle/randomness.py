"""The states of the random number generators that a training process draws from."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Trainer

__all__ = [
    "collected_states",
    "drawn_seed",
    "generators_of",
    "lost_devices",
    "random_states",
    "set_random_states",
    "shared_generator",
]


def collected_states() -> dict[str, Any]:
    """Return the states of Python, NumPy, torch and all CUDA devices, as Lightning holds them."""
    # A process that never used CUDA drew nothing there, and after a fork could not even ask.
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch gives it no types
    states: dict[str, Any] = _collect_rng_states(include_cuda=used)
    return states


def random_states() -> dict[str, Any]:
    """Return the same as tensors and plain values."""
    states = collected_states()
    version, words, gauss = states["python"]
    name, keys, *rest = states["numpy"]
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype("int64")), *rest],
        "torch": states["torch"],
        "cuda": list(states.get("torch.cuda", [])),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Take back what :func:`random_states` returned; CUDA devices only if there are as many as then."""
    version, words, gauss = states["python"]
    name, keys, *rest = states["numpy"]
    _set_rng_states(
        {
            "python": (version, words.tolist(), gauss),
            "numpy": (name, keys.numpy().astype("uint32"), *rest),
            "torch": states["torch"],
            "torch.cuda": states["cuda"] if len(states["cuda"]) == torch.cuda.device_count() else [],
        }
    )


def lost_devices(states: dict[str, Any]) -> list[str]:
    """Return why saved states cannot be taken back whole on this machine, if so."""
    then, now = len(states["cuda"]), torch.cuda.device_count()
    if then in (0, now):
        return []
    return [f"the checkpoint was written with {then} CUDA devices in sight, not {now}"]


def generators_of(loader: object) -> list[torch.Generator]:
    """Return the generators that a data loader and its samplers were given; one may stand there twice."""
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    found = (getattr(part, "generator", None) for part in (loader, sampler, inner))
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def drawn_seed() -> int:
    """Return a seed from torch's generator."""
    return int(torch.randint(2**63 - 1, ()).item())


def shared_generator(trainer: Trainer, seed: int | None) -> torch.Generator:
    """Return a generator on the CPU that is the same in all processes, at ``seed`` or one that is drawn."""
    own = drawn_seed() if seed is None else seed
    first: int = trainer.strategy.broadcast(own)
    return torch.Generator().manual_seed(first)
