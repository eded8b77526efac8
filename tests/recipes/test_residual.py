import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tricks.recipes.residual import ResidualBlock, ResidualNet, ZeroPadding


def by_hand(block, x, stride):
    """The block as the papers write it, in functions: conv, norm, relu; conv, norm; add; relu."""

    def conv_norm(x, conv, norm, stride):
        x = F.conv2d(x, conv.weight, stride=stride, padding=1)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    inner = conv_norm(x, block.first[0], block.first[1], stride).clamp(min=0)
    outer = conv_norm(inner, block.second[0], block.second[1], 1)
    shortcut = F.conv2d(x, block.shortcut.weight, stride=stride)
    return (outer + shortcut).clamp(min=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_with_projection_is_the_papers(stride):
    block = ResidualBlock(3, 5, stride=stride, dropout=0.0, shortcut="projection")
    for norm in (block.first[1], block.second[1]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(4, 3, 7, 7)
    torch.testing.assert_close(block(x), by_hand(block, x, stride), rtol=1e-5, atol=1e-5)


def test_zero_padding_takes_every_other_pixel_and_adds_zeros():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    expected = torch.tensor([[[[0.0, 2.0], [6.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert torch.equal(ZeroPadding(1, 2)(x), expected)


def test_a_silent_branch_leaves_the_shortcut():
    block = ResidualBlock(2, 3, stride=1, dropout=0.0, shortcut="padding")
    nn.init.zeros_(block.second[1].weight)
    x = torch.rand(2, 2, 4, 4)
    assert torch.equal(block(x)[:, :2], x)
    assert not block(x)[:, 2].any()
    assert not list(block.shortcut.parameters())


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
def test_where_the_shape_stays_the_shortcut_is_the_input(shortcut):
    block = ResidualBlock(2, 2, stride=1, dropout=0.0, shortcut=shortcut)
    assert isinstance(block.shortcut, nn.Identity)


def test_norm_comes_before_and_dropout_after_the_activation():
    net = ResidualNet(widths=(4,), dropout=0.25)
    for part in (net.stem, net.groups[0][0].first):
        assert [type(layer) for layer in part] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout]
        assert part[3].p == 0.25


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 8])
def test_any_size_of_image_gives_logits(shortcut, blocks, size):
    net = ResidualNet(channels=3, classes=7, widths=(4, 4, 6), blocks=blocks, shortcut=shortcut).eval()
    assert net(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_each_group_but_the_first_halves_the_image():
    net = ResidualNet(widths=(2, 3, 4), blocks=2)
    shapes, x = [], net.stem(torch.randn(1, 1, 8, 8))
    for group in net.groups:
        x = group(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(2, 8, 8), (3, 4, 4), (4, 2, 2)]


def test_number_of_parameters():
    # stem 9*2 + 2*2; block 2 -> 2: 2 * (36 + 4); block 2 -> 3: 54 + 6 + 81 + 6 + 6 (1x1); head 3*5 + 5
    net = ResidualNet(classes=5, widths=(2, 3))
    assert sum(parameter.numel() for parameter in net.parameters()) == 22 + 80 + 153 + 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"dropout must lie in \[0.0, 1.0\), got 1.0"),
        ({"shortcut": "paddin"}, "shortcut must be one of .* did you mean 'padding'"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"widths": ()}, r"widths must name at least one group, got \(\)"),
        ({"widths": (8, 4), "shortcut": "padding"}, "new must be at least 0, got -4"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ResidualNet(**settings)
