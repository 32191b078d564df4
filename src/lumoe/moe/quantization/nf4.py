"""NormalFloat4 (arXiv 2305.14314, appendix E): sixteen quantiles of a normal distribution, one scale a group.

What the mixed-precision paper used. No kernel multiplies it here: it is measured for quality.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ndtri

# Where the outermost quantiles lie; the published construction averages 1 − 1/32 and 1 − 1/30.
_EDGE = 1 - (1 / 32 + 1 / 30) / 2


def nf4_values() -> torch.Tensor:
    """Return the sixteen code values in rising order, float32, from −1 to 1 with an exact 0."""
    below = -ndtri(np.linspace(_EDGE, 0.5, 8)[:-1])
    above = ndtri(np.linspace(_EDGE, 0.5, 9)[:-1])
    values = np.sort(np.concatenate([below, [0.0], above]))
    return torch.tensor(values / values.max(), dtype=torch.float32)


def nf4(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round `weight [outputs, inputs]` to the nearest code value times its group's largest magnitude.

    Returns:
        Codes uint8 `[outputs, inputs]`, scales bfloat16 `[outputs, inputs / group]`, and the code values.
    """
    rows, inputs = weight.shape
    grouped = weight.float().view(rows, inputs // group_size, group_size)
    scales = grouped.abs().amax(-1).to(torch.bfloat16)
    scales[scales == 0] = 1.0
    values = nf4_values()
    middles = (values[1:] + values[:-1]) / 2
    codes = torch.bucketize(grouped / scales.float().unsqueeze(-1), middles).to(torch.uint8)
    return codes.view(rows, inputs), scales, values
