"""Whether parts of a module run as compiled code."""

from __future__ import annotations

from torch import nn

__all__ = ["is_compiled"]


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``torch.compile`` or ``compile()`` was called on ``module`` or on a part of it.

    Example:
        >>> is_compiled(nn.Sequential(nn.Linear(1, 1)))
        False
    """
    return any(
        path.endswith("_orig_mod") or part._compiled_call_impl is not None
        for path, part in module.named_modules()
    )
