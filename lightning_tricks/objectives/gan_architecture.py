"""What a GAN of images should be built of, and what speaks against it: in words, with names.

References: Radford et al., "Unsupervised Representation Learning with Deep Convolutional GANs", 2016,
https://arxiv.org/abs/1511.06434, section 3; Chintala et al., "How to Train a GAN?", 2016,
https://github.com/soumith/ganhacks, hints 1 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _MaxPoolNd

from lightning_tricks.core.checks import listed
from lightning_tricks.core.select import clean_name

__all__ = ["compiled", "doubtful_layers", "doubtful_output", "doubtful_range", "doubtful_scores"]

_THROUGH = ("View", "Reshape", "Clone", "ToCopy", "Squeeze", "Permute", "Transpose")


def doubtful_layers(name: str, network: nn.Module) -> Iterator[str]:
    """Yield what layers of ``network``, called ``name``, starve a GAN of gradients, a sentence for each kind.

    Example:
        >>> list(doubtful_layers("critic", nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())))
        ["LeakyReLU lets gradients through everywhere, but 'critic.1' is ReLU"]
    """
    parts = [(clean_name(f"{name}.{path}"), part) for path, part in network.named_modules() if path]
    if flat := [path for path, part in parts if isinstance(part, nn.ReLU | nn.ReLU6)]:
        yield f"LeakyReLU lets gradients through everywhere, but {listed(flat)} is ReLU"
    if pools := [path for path, part in parts if isinstance(part, _MaxPoolNd | _AdaptiveMaxPoolNd)]:
        yield f"strides or average pooling pass gradients to all pixels, but {listed(pools)} is max-pooling"


def doubtful_scores(name: str, critic: nn.Module) -> str | None:
    """Return what is wrong if the scores of ``critic``, called ``name``, have been squashed.

    Example:
        >>> doubtful_scores("critic", nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()))
        "critics return scores of any size, but 'critic.1' is Sigmoid: leave it out"
    """
    path, last = [*critic.named_modules()][-1]
    if not isinstance(last, nn.Sigmoid | nn.Softmax):
        return None
    where = clean_name(".".join(filter(None, (name, path))))
    return f"critics return scores of any size, but {where!r} is {type(last).__name__}: leave it out"


def doubtful_output(name: str, network: nn.Module, samples: Tensor) -> str | None:
    """Return what is wrong if the image ``samples`` of ``network`` do not come from a tanh.

    It follows the graph of ``samples``, so a tanh that is no layer counts; what a compiled network ends in is
    not known.
    """
    node = samples.grad_fn
    while node is not None and node.name().startswith(_THROUGH) and node.next_functions:
        node = node.next_functions[0][0]
    if node is None or "Tanh" in node.name() or compiled(network):
        return None
    last = [path for path, part in network.named_modules() if not any(part.children())][-1]
    return (
        "a generator of images should end in tanh, as images lie in [-1, 1], but does not after "
        f"{'.'.join(filter(None, (name, last)))!r}"
    )


def doubtful_range(samples: Tensor) -> str | None:
    """Return what is wrong if image ``samples`` of the data lie outside [-1, 1]; waits for their device."""
    low, high = samples.min().item(), samples.max().item()
    if low >= -1.0 - 1e-3 and high <= 1.0 + 1e-3:
        return None
    return (
        "real images should lie in [-1, 1], where tanh can follow, as (x - 127.5) / 127.5 of bytes does, but "
        f"lie in [{low:.3g}, {high:.3g}]"
    )


def compiled(network: nn.Module) -> bool:
    """Return whether ``network`` or a part of it was compiled."""
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in network.modules()
    )
