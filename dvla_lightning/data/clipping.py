"""The share of the data beyond the range of the policy's normalisation, which is clipped and lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dvla_lightning.data.rollout_metrics import Gather
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.episode import Episode


def clipping_report(policy: DVLAPolicy, actions_ND: NDArray[Any], proprioception_MD: NDArray[Any]) -> str | None:
    """One sentence about demonstrations that the policy's statistics do not cover; None if they do.

    "quantile" leaves about 2 % of each dimension outside. A policy that was trained on other data may miss more.

    Args:
        policy: with statistics.
        actions_ND: all demonstrated actions.
        proprioception_MD: all observed proprioception vectors.
    """
    parts = [
        *_shares("actions", policy.action_normalizer.outside(_like(policy, actions_ND))),
        *_shares("proprioception", policy.proprioception_normalizer.outside(_like(policy, proprioception_MD))),
    ]
    if not parts:
        return None
    return f"normalisation ({policy.normalization.plain()}) covers a part of the data, beyond it are {'; '.join(parts)}"


def clipping_metrics(episodes: Sequence[Episode], gather: Gather) -> dict[str, float]:
    """Share of the proprioception numbers of all decisions beyond the policy's range, over the episodes of all ranks.

    Args:
        episodes: of this rank; those with an error do not count.
        gather: collects from all ranks.
    """
    decisions = [decision for episode in episodes if episode.error is None for decision in episode.decisions]
    sums = torch.tensor([sum(decision.outside for decision in decisions), float(len(decisions))])
    total, count = gather(sums).sum(0).tolist()
    return {"rollout/proprioception_outside": total / max(1.0, count)}


def _like(policy: DVLAPolicy, values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values).to(policy.device)


def _shares(name: str, outside_ND: Tensor) -> list[str]:
    """Nothing, or a phrase with the share of each dimension."""
    share_D = outside_ND.float().mean(0).tolist()
    dimensions = [f"{share:.2%} in dimension {d}" for d, share in enumerate(share_D) if share > 0]
    mean = sum(share_D) / len(share_D)
    return [f"{mean:.2%} of {name} ({', '.join(dimensions)})"] if dimensions else []
