"""Choosing experts, sorting tokens by them, and adding up what they make: in `csrc/router.cpp`, or by torch."""

from __future__ import annotations

import torch

from lumoe.moe.kernels.library import router_library


def grouped(chosen: torch.Tensor, experts: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Sort the choices of `[tokens, k]` by expert, those of one expert by token.

    Returns:
        How many tokens each of `experts` has; the token of each place of that order, int64 `[tokens · k]`; and the
        place of each choice, int64 `[tokens, k]`.
    """
    library = router_library() if chosen.is_cpu else None
    if library is None:
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        counts: list[int] = torch.bincount(flat, minlength=experts).tolist()
        return counts, order // chosen.shape[1], places.view(chosen.shape)
    chosen = chosen.contiguous()
    counted, places = torch.empty(experts, dtype=torch.int64), torch.empty_like(chosen)
    rows = chosen.new_empty(chosen.numel())
    library.lumoe_group(
        *chosen.shape, experts, chosen.data_ptr(), counted.data_ptr(), rows.data_ptr(), places.data_ptr()
    )
    return counted.tolist(), rows, places


def weighted_sums(
    outputs: torch.Tensor,
    weights: torch.Tensor,
    places: torch.Tensor | None = None,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return each token's outputs, weighted and added in the order of its weights.

    Args:
        outputs: `[rows, hidden]`.
        weights: `[tokens, k]`.
        places: rows of the outputs that they are for, int64 `[tokens, k]`; None: rows are in the order of `weights`.
        onto: `[tokens, hidden]`, contiguous, what the sum is added to.

    Returns:
        `[tokens, hidden]`.
    """
    library = router_library() if outputs.is_cpu and outputs.dtype == torch.bfloat16 else None
    if library is None:
        if len(weights) == 1 and places is None:
            sums = weights @ outputs
        else:
            rows = outputs.view(*weights.shape, -1) if places is None else outputs[places]
            sums = (rows * weights.unsqueeze(-1)).sum(dim=1)
        return sums if onto is None else onto + sums
    (tokens, chosen), hidden = weights.shape, outputs.shape[1]
    outputs, weights = outputs.contiguous(), weights.contiguous()
    sums = torch.empty((tokens, hidden), dtype=torch.bfloat16)
    places_at = None if places is None else places.data_ptr()
    onto_at = None if onto is None else onto.data_ptr()
    library.lumoe_weighted_sums(
        tokens, chosen, hidden, outputs.data_ptr(), weights.data_ptr(), places_at, onto_at, sums.data_ptr()
    )
    return sums
