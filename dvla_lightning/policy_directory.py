"""Policy directories: config.json, model.safetensors, adapter/ (peft's own format) and a README card. Never pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from torch import Tensor

from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path
from dvla_lightning.policy_adapters import (
    adapter_state,
    base_state,
    is_adapted,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from dvla_lightning.policy_config import CONFIG, describe
from dvla_lightning.policy_tensors import check_finite, read_tensors, write_tensors

if TYPE_CHECKING:
    from dvla_lightning.policy import DVLAPolicy

WEIGHTS, ADAPTER = "model.safetensors", "adapter"


def resolve(pretrained: str) -> Path:
    """The local directory of a policy: `pretrained` itself, or a snapshot of that Hugging Face repository.

    Raises:
        UserError: if it is neither.
    """
    path = local_path(pretrained, "policy directory")
    try:
        if path.is_dir():
            return path
        if path.exists():
            raise UserError(f"{pretrained!r} is a file: give a policy directory, which holds {CONFIG}")
        if path.name and _beside(path, "old").is_dir():
            raise UserError(
                f"policy directory {pretrained!r} does not exist, but an interrupted save left the policy before it in "
                f"{_beside(path, 'old')}: rename that one"
            )
    except OSError as error:
        raise UserError(f"policy directory {pretrained!r} cannot be read: {error.strerror}") from error
    looks_like_repository = pretrained.count("/") == 1 and not pretrained.startswith((".", "/", "~"))
    if not looks_like_repository:
        raise UserError(f"policy directory {pretrained!r} does not exist: give a directory that holds {CONFIG}")
    try:
        from huggingface_hub import snapshot_download

        wanted = [CONFIG, WEIGHTS, f"{ADAPTER}/*.json", f"{ADAPTER}/*.safetensors"]
        return Path(snapshot_download(pretrained, allow_patterns=wanted))
    except Exception as error:
        raise UserError(
            f"{pretrained!r} is neither a policy directory nor a Hugging Face repository that can be reached "
            f"({type(error).__name__})"
        ) from error


def save(policy: DVLAPolicy, path: Path, card: str) -> None:
    """Writes the directory beside its final place and then swaps it in, so that no half-written policy is ever seen.

    Raises:
        UserError: if the policy is not finite, the place holds something else, or the disk refuses; what was there
            before stays.
    """
    path = path.resolve()
    state = _base_state(policy)
    check_finite(state, f"the policy was not saved to {path}", _buffers(policy))
    if is_adapted(policy.backbone):
        check_finite(adapter_state(policy.backbone), f"the policy was not saved to {path}")
    partial, old = _beside(path, "partial"), _beside(path, "old")
    try:
        if old.exists() and not path.exists():
            old.rename(path)  # a save was interrupted between its two renames
        if path.exists() and not (path / CONFIG).exists() and (path.is_file() or any(path.iterdir())):
            raise UserError("it holds something else than a policy, which would be lost: choose another place")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(json.dumps(describe(policy), indent=2) + "\n")
        write_tensors(state, partial / WEIGHTS)
        if is_adapted(policy.backbone):
            save_adapter(policy.backbone, partial / ADAPTER)
        (partial / "README.md").write_text(_card(policy, card))
        _settle(partial)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            # Not removed before the new one is in place: deleting takes time in which we may be killed.
            path.rename(old)
        partial.rename(path)
    except (OSError, safetensors.SafetensorError, TypeError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            if old.exists() and not path.exists():
                old.rename(path)
        raise UserError(f"the policy could not be saved to {path}: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


def load_weights(policy: DVLAPolicy, directory: Path, has_adapter: bool, merge: bool) -> None:
    """Fills a freshly built policy from model.safetensors and, if there is one, from adapter/.

    Args:
        policy: to fill.
        directory: of the policy.
        has_adapter: whether adapter/ must be there.
        merge: add the adapter into the backbone's weights.

    Raises:
        UserError: if a file is missing, corrupt or not finite, or names and shapes differ from the policy's.
    """
    what = str(directory / CONFIG)
    policy.load_state_dict(read_tensors(directory / WEIGHTS, policy.state_dict(), what, _buffers(policy)))
    adapter = directory / ADAPTER
    if has_adapter != adapter.is_dir():
        problem = "has no directory" if has_adapter else "does not speak of the directory"
        raise UserError(f"{directory if has_adapter else what} {problem} {ADAPTER}/: copy the whole policy directory")
    if has_adapter:
        adapted = load_adapter(policy.backbone, adapter)
        policy.backbone = merge_adapter(adapted, adapter) if merge else adapted


def fingerprint(policy: DVLAPolicy) -> str:
    """First 16 hex digits of the SHA-256 of all weights and statistics: says which policy a record is about."""
    digest = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _base_state(policy: DVLAPolicy) -> dict[str, Tensor]:
    """The policy's tensors without adapters, under the names of a policy that never had any."""
    state = {name: value for name, value in policy.state_dict().items() if not name.startswith("backbone.")}
    return state | {f"backbone.{name}": value for name, value in base_state(policy.backbone).items()}


def _buffers(policy: DVLAPolicy) -> set[str]:
    """Names of the backbone's buffers."""
    backbone = policy.backbone.get_base_model() if is_adapted(policy.backbone) else policy.backbone
    return {f"backbone.{name}" for name, _ in backbone.named_buffers()}


def _settle(directory: Path) -> None:
    """Gives files and folders the modes of the umask, as the folder has it, and waits until they are on the disk."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    for path in [*directory.rglob("*"), directory]:
        path.chmod(mode if path.is_dir() else mode & 0o666)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _card(policy: DVLAPolicy, card: str) -> str:
    backbone = policy.backbone.get_base_model() if is_adapted(policy.backbone) else policy.backbone
    size = sum(value.numel() for value in policy.parameters())
    return (
        f"# {type(backbone).__name__} policy\n\n{card}\n\n"
        f"{size:,} parameters; chunks of {policy.chunk_size} actions x {policy.action_dim} dimensions, "
        f"{policy.action_tokenizer.vocab_size} action tokens.\n\n"
        "```python\nfrom dvla_lightning.policy import DVLAPolicy\n\n"
        'policy = DVLAPolicy.from_pretrained("<this directory>")\n'
        "chunk = policy.act(observation, num_steps=4).actions[0]  # at every decision; it draws anew each time\n```\n\n"
        "`torch.manual_seed(0)` before an episode makes its draws come out the same again, and so does another "
        "`seed=...` at every decision.\n"
    )
