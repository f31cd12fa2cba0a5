"""The header of an evaluation: what is evaluated and how. Evaluations with equal headers are the same one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy
import torch

import dvla_lightning
from dvla_lightning.envs.base import Environment
from dvla_lightning.evaluation.records import EpisodeKey
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_directory import policy_fingerprint

FORMAT_VERSION = 2  # 1 had no checksums, and seeds that depended on the number of episodes

Header = dict[str, Any]
"""Everything that an episode's outcome may depend on, and `remarks`, which its table must show."""


def make_header(
    environment: Environment,
    policy: DVLAPolicy,
    split: str,
    num_steps: Mapping[str, int],
    episodes_per_task: int,
    seed: int,
    precision: str,
) -> Header:
    """The header of an evaluation, in plain JSON types.

    Args:
        environment: where the episodes run.
        policy: the one that is evaluated.
        split: "heldout", or "selection".
        num_steps: task -> K, of all tasks in their order.
        episodes_per_task: over all shards; an evaluation may grow.
        seed: of the evaluation.
        precision: of the Trainer.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "policy": policy_fingerprint(policy),
        "environment": dict(environment.identity()),
        "split": split,
        "seed": seed,
        "num_steps": dict(num_steps),
        "episodes_per_task": episodes_per_task,
        "num_action_steps": policy.num_action_steps,
        "sampler": dataclasses.asdict(policy.sampler),
        "precision": precision,
        "remarks": list(policy.remarks),
        "versions": {
            # Of what is imported, which need not be installed: a checkout on PYTHONPATH has no metadata.
            "dvla-lightning": dvla_lightning.__version__,
            **{library.__name__: str(library.__version__) for library in (torch, numpy, gymnasium)},
        },
    }
    return json.loads(json.dumps(header))


def grid(header: Header) -> list[EpisodeKey]:
    """All episodes of an evaluation, shards together, in order."""
    return [EpisodeKey(task, state) for task in header["num_steps"] for state in range(header["episodes_per_task"])]


def grown(header: Header, episodes_per_task: int) -> Header:
    """The same evaluation with another number of episodes."""
    return {**header, "episodes_per_task": episodes_per_task}


def differences(there: Header, here: Header) -> str:
    """The differences between two headers, for people: the first three entries; empty if there are none."""
    found = list(_differences(there, here, ""))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in {**there, **here}:
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} ({json.dumps(old)} there, {json.dumps(new)} here)"
