"""BatchNorm that always normalises with its running statistics, in training as in evaluation.

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias

Reference: Ren et al., "Faster R-CNN", 2015, https://arxiv.org/abs/1506.01497, as detectors have been
fine-tuned since: at one or two images per device, batch statistics are worse than those of pretraining.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["FrozenBatchNorm"]


# No ``_BatchNorm``, or ``Trainer(sync_batchnorm=True)`` would make it one that moves.
class FrozenBatchNorm(_NormBase):
    """What BatchNorm is in eval mode, in either mode; under the same names in a state dict, for any axes.

    ``weight`` and ``bias`` learn as long as they require a gradient.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, shape (samples, channels, ...)."""
        mean, var = self.running_mean, self.running_var
        return batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
