"""A model's way into a module, and its checksum: equal for equal contents, and for no others."""

from __future__ import annotations

import binascii
import struct

import pytest
import torch

from lightning_tricks.lifecycle.weights import Weights, checksum
from tests.fusion.runs import fit
from tests.toys import assert_equal, weights

MODEL = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "n": torch.tensor(7)}


def test_the_checksum_is_the_crc_of_names_types_shapes_and_bytes():
    content = (
        b"w torch.float32 (2, 2)"
        + struct.pack("<4f", 1, 2, 3, 4)
        + b"n torch.int64 ()"
        + struct.pack("<q", 7)
    )
    assert int(checksum(MODEL), 16) == binascii.crc32(content)


def test_equal_contents_have_one_checksum_however_they_lie_in_memory():
    again = {"w": torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T, "n": torch.tensor([5, 7])[1]}
    assert checksum(again) == checksum(MODEL)
    assert checksum({**MODEL, "w": torch.nn.Parameter(MODEL["w"])}) == checksum(MODEL)


@pytest.mark.parametrize(
    "other",
    [
        {"v": MODEL["w"], "n": MODEL["n"]},
        {"w": MODEL["w"].reshape(4), "n": MODEL["n"]},
        {"w": MODEL["w"].view(torch.int32), "n": MODEL["n"]},
        {"w": MODEL["w"].nextafter(torch.tensor(9.0)), "n": MODEL["n"]},
        {"w": MODEL["w"].flip(0), "n": MODEL["n"]},
        {"w": MODEL["w"]},
        {},
    ],
)
def test_another_content_has_another(other):
    assert checksum(other) != checksum(MODEL)


KINDS = [
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.complex64,
    torch.bool,
    torch.uint8,
    torch.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_every_type_and_shape_has_one(dtype, shape):
    zeros, ones = torch.zeros(shape).to(dtype), torch.ones(shape).to(dtype)
    assert len(checksum({"w": zeros})) == 8
    assert (checksum({"w": zeros}) == checksum({"w": ones})) is (zeros.numel() == 0)


def test_putting_leaves_what_is_not_named_and_refuses_what_is_not_there(tmp_path):
    module, runner = fit(tmp_path, max_epochs=1)
    held, before = Weights(runner, module), weights(module)
    held.put({"head.bias": torch.ones(3)})
    assert_equal(weights(module), {**before, "head.bias": torch.ones(3)})
    with pytest.raises(ValueError, match=r"^tail\.bias must be in the state dict of Toy, but it is not$"):
        held.put({"head.bias": torch.zeros(3), "tail.bias": torch.zeros(3)})
    assert_equal(weights(module), {**before, "head.bias": torch.ones(3)})


def test_alone_whole_tensors_are_the_modules_own(tmp_path):
    module, runner = fit(tmp_path, max_epochs=1)
    held = Weights(runner, module)
    assert not held.sharded
    assert_equal(held.spread(lambda: held.gather(held.tensors())), weights(module))
    assert held.gather(held.tensors())["head.bias"].data_ptr() == module.head.bias.data_ptr()
