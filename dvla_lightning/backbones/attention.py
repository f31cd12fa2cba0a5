"""Exact attention of packed views to a cached prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_to_prompt_and_view(
    query_BHSLd: Tensor,
    prompt_key_BHPd: Tensor,
    prompt_value_BHPd: Tensor,
    view_key_BHSLd: Tensor,
    view_value_BHSLd: Tensor,
) -> Tensor:
    """Softmax attention in which every view sees the prompt and itself, and no other view.

    Scores to the prompt and scores inside the view are two dense products; one softmax over both joins them. Nothing is
    masked and the prompt's keys are not copied per view, so S views cost S short passes, not S long ones.

    Args:
        query_BHSLd: queries of S views of L positions.
        prompt_key_BHPd: cached keys of P prompt tokens.
        prompt_value_BHPd: cached values.
        view_key_BHSLd: keys of the views.
        view_value_BHSLd: values of the views.

    Returns:
        (B, H, S, L, d).
    """
    views = query_BHSLd.shape[2:4]
    query = query_BHSLd * query_BHSLd.shape[-1] ** -0.5
    to_prompt_BHXP = query.flatten(2, 3) @ prompt_key_BHPd.transpose(-1, -2)
    to_view_BHXL = (query @ view_key_BHSLd.transpose(-1, -2)).flatten(2, 3)
    weights = torch.cat([to_prompt_BHXP, to_view_BHXL], dim=-1).softmax(-1)
    # split, not two slices: the gradient of a slice is a zero-filled copy of the whole
    prompt_weights, view_weights = weights.split([to_prompt_BHXP.shape[-1], to_view_BHXL.shape[-1]], dim=-1)
    from_prompt = prompt_weights @ prompt_value_BHPd
    return from_prompt.unflatten(2, views) + view_weights.unflatten(2, views) @ view_value_BHSLd
