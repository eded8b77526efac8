"""A number for the bits of tensors, against integers that Python counts with."""

from __future__ import annotations

import struct
import zlib

import pytest
import torch

from lightning_tricks.core.fingerprint import fingerprint


def by_hand(tensors: dict[str, list[float]], code: str) -> int:
    """Return the number of lists of entries that ``struct`` packs by ``code``."""
    total = 0
    for name, entries in tensors.items():
        for entry in entries:
            bits = int.from_bytes(struct.pack(f"<{code}", entry), "little", signed=True)
            total += (2 * zlib.crc32(name.encode()) + 1) * bits * (bits + 1)
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize(
    ("dtype", "code"), [(torch.float32, "f"), (torch.float64, "d"), (torch.float16, "e")]
)
def test_it_is_that_of_integers(dtype: torch.dtype, code: str) -> None:
    entries = {"a": [1.5, -2.0, 0.0, -0.0, float("inf")], "b": [1e-3]}
    tensors = {name: torch.tensor(values, dtype=dtype) for name, values in entries.items()}
    rounded = {name: values.tolist() for name, values in tensors.items()}
    assert fingerprint(tensors).item() == by_hand(rounded, code)


def test_parts_add_up_and_order_and_layout_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(6, 4)
    whole = fingerprint({"a": tensor, "b": tensor[0]})
    assert whole == fingerprint({"b": tensor[0], "a": tensor.t().contiguous().t()})
    assert whole == fingerprint({"a": tensor[:2]}) + fingerprint({"a": tensor[2:], "b": tensor[0]})
    monkeypatch.setattr("lightning_tricks.core.fingerprint._PIECE", 5)
    assert whole == fingerprint({"a": tensor, "b": tensor[0]})


def test_it_tells_values_names_and_signs_apart() -> None:
    tensor = torch.randn(5)
    nudged = tensor.clone()
    nudged[3] = torch.nextafter(nudged[3], torch.tensor(9.0))
    others = [{"a": nudged}, {"b": tensor}, {"a": -tensor}, {"a": tensor.bfloat16()}, {}]
    assert len({fingerprint(each).item() for each in [{"a": tensor}, *others]}) == 6
    assert fingerprint({"a": torch.empty(0), "b": torch.zeros(2, dtype=torch.bool)}) == 0
    assert fingerprint({"a": torch.tensor([1 + 2j])}) == fingerprint({"a": torch.tensor([1.0, 2.0])})
