"""Policy directories: config.json, model.safetensors, adapter/ (peft's own format) and a README card. Never pickle."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import safetensors
import torch
from torch import Tensor, nn

from dvla_lightning import policy_config
from dvla_lightning.diffusion.sampler import Sampler, SamplerOverrides
from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path
from dvla_lightning.policy_adapters import (
    adapter_state,
    add_adapter,
    base_state,
    has_frozen_base,
    is_adapted,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from dvla_lightning.policy_base import SMALL_BASE, BaseReference, fingerprint
from dvla_lightning.policy_config import CONFIG, PolicyConfig
from dvla_lightning.policy_parts import PolicyParts
from dvla_lightning.policy_tensors import check_finite, read_tensors, write_tensors

if TYPE_CHECKING:  # importing peft takes seconds
    from peft import LoraConfig

Policy = TypeVar("Policy", bound=PolicyParts)
WEIGHTS, ADAPTER, EVALUATION = "model.safetensors", "adapter", "evaluation"


def load(
    policy_class: type[Policy],
    pretrained: str,
    *,
    sampler: SamplerOverrides | Sampler | None = None,
    num_action_steps: int | None = None,
    lora: LoraConfig | None = None,
    base: str | None = None,
    trusted_modules: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> Policy:
    """Builds a policy without weights and fills it from its directory; see `DVLAPolicy.from_pretrained`."""
    directory, revision = resolve(pretrained)
    policy, config = _build(policy_class, directory, sampler, num_action_steps, trusted_modules)
    device = torch.get_default_device() if device is None else device
    policy.remarks, policy.is_fitted = config.remarks, True
    policy.directory = directory if revision is None and lora is None else None
    origin = _fill(policy, directory, config, base, device)
    if config.has_adapter:
        adapted = load_adapter(policy.backbone, directory / ADAPTER)
        policy.backbone = adapted if lora is None else merge_adapter(adapted, directory / ADAPTER)
    if lora is not None:
        origin = None  # an adapter of the directory is a part of the weights now
        if not config.has_adapter:
            origin = _reference(pretrained, directory, revision, fingerprint(policy.backbone.state_dict()))
        policy.backbone = add_adapter(policy.backbone, lora)
    policy.base = origin if has_frozen_base(policy.backbone) else None
    return policy.eval()


def _build(
    policy_class: type[Policy],
    directory: Path,
    sampler: SamplerOverrides | Sampler | None,
    num_action_steps: int | None,
    trusted_modules: Sequence[str],
) -> tuple[Policy, PolicyConfig]:
    """The policy that config.json describes, on the meta device where its network can be built there."""

    def build() -> tuple[Policy, PolicyConfig]:
        config = policy_config.read(directory, trusted_modules)
        if num_action_steps is not None:
            config.parts["num_action_steps"] = num_action_steps
        if sampler is not None:
            saved = config.parts["sampler"]
            try:
                config.parts["sampler"] = sampler if isinstance(sampler, Sampler) else sampler.over(saved)
            except ValueError as error:
                raise UserError(f"policy: {error}") from error
        return policy_class(**config.parts), config

    with contextlib.suppress(UserError), torch.device("meta"):
        built = build()
        if not _has_loose_tensors(built[0]):
            return built
    return build()


def _has_loose_tensors(policy: nn.Module) -> bool:
    """Whether there are tensors that are neither parameters nor buffers: nothing fills them on the meta device."""
    return any(isinstance(value, Tensor) for module in policy.modules() for value in vars(module).values())


def _fill(
    policy: PolicyParts, directory: Path, config: PolicyConfig, base: str | None, device: object
) -> BaseReference | None:
    """Reads the weights of a policy without adapters.

    Returns:
        The base below its adapter, as it was found.

    Raises:
        UserError: if a file is missing, corrupt or not finite, names and shapes differ from the policy's, the base is
            another one, or a tensor would stay empty.
    """
    own, buffers, what, origin = policy.state_dict(), _buffers(policy), str(directory / CONFIG), config.base
    if config.has_adapter != (directory / ADAPTER).is_dir():
        problem = "has no directory" if config.has_adapter else "does not mention the directory"
        raise UserError(
            f"{directory if config.has_adapter else what} {problem} {ADAPTER}/: copy the whole policy directory"
        )
    if base is not None and config.is_base_copied:
        raise UserError(f"{directory} holds all of its weights: leave out base (--model.policy.base)")
    target = torch.device(str(device))
    if config.is_base_copied:
        state = read_tensors(directory / WEIGHTS, own, what, buffers, target)
    else:
        assert config.base is not None
        rest = _above_backbone(own)
        below = {name: value for name, value in own.items() if name not in rest}
        state = read_tensors(directory / WEIGHTS, rest, what, device=target)
        weights, origin = _read_base(below, directory, config.base, base, buffers, target)
        state |= weights
    policy.load_state_dict(state, assign=True)
    if any(buffer.is_meta for buffer in policy.network.buffers()):
        policy.network.materialize(target)
    for name, tensor in (*policy.named_parameters(), *policy.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"{directory}: nothing gives {name!r} its values: save it with the policy, or fill it in the "
                f"backbone's materialize()"
            )
    return origin


def _read_base(
    own: dict[str, Tensor],
    directory: Path,
    reference: BaseReference,
    override: str | None,
    buffers: set[str],
    device: torch.device,
) -> tuple[dict[str, Tensor], BaseReference]:
    """The backbone's tensors below an adapter, and the directory that has them."""
    what = f"the adapter in {directory}"
    give = "give the policy it was trained on as base (--model.policy.base)"
    place, revision = (reference.pretrained, reference.revision) if override is None else (override, None)
    try:
        path, commit = resolve(place, revision)
        state = read_tensors(path / WEIGHTS, own, what, buffers, device, only="backbone.")
    except UserError as error:
        raise UserError(f"{what} needs its base: {error}; {give}") from error
    if fingerprint({name.removeprefix("backbone."): x for name, x in state.items()}) != reference.fingerprint:
        raise UserError(f"{what} was trained on other weights than those of {place}: {give}")
    return state, _reference(place, path, commit, reference.fingerprint)


def _reference(place: str, found: Path, revision: str | None, fingerprint: str) -> BaseReference:
    """A base by its absolute path, or by the repository and revision that were found."""
    return BaseReference(str(found.resolve()) if revision is None else place, revision, fingerprint)


def resolve(pretrained: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Finds a policy directory: `pretrained` itself, or a snapshot of that Hugging Face repository.

    Returns:
        The local directory, and the commit of the repository (None for a directory).

    Raises:
        UserError: if it is neither.
    """
    path = local_path(pretrained, "policy directory")
    try:
        if path.is_dir():
            return path, None
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

        wanted = [CONFIG, WEIGHTS, f"{ADAPTER}/*.json", f"{ADAPTER}/*.safetensors", f"{EVALUATION}/*.json*"]
        snapshot = Path(snapshot_download(pretrained, allow_patterns=wanted, revision=revision))
        return snapshot, snapshot.name  # the hub's cache names a snapshot by its commit
    except Exception as error:
        raise UserError(
            f"{pretrained!r} is neither a policy directory nor a Hugging Face repository that can be reached "
            f"({type(error).__name__})"
        ) from error


def save(policy: PolicyParts, path: Path, card: str, copy_base: bool | None = None) -> None:
    """Writes the directory beside its final place and then swaps it in, so that no half-written policy is ever seen.

    See `DVLAPolicy.save_pretrained`.
    """
    path = path.resolve()
    if path.name in (ADAPTER, EVALUATION) and (path.parent / CONFIG).exists():
        raise UserError(f"{path.name}/ is a part of the policy directory {path.parent}: choose another place")
    base, is_copied = _base_to_name(policy, path, copy_base)
    state = _above_backbone(policy.state_dict())
    if is_copied:
        state |= {f"backbone.{name}": value for name, value in base_state(policy.backbone).items()}
    state = _whole(state)
    adapter = _whole(adapter_state(policy.backbone)) if is_adapted(policy.backbone) else {}
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return  # it has handed over its shards
    check_finite(state, f"the policy was not saved to {path}", _buffers(policy))
    check_finite(adapter, f"the policy was not saved to {path}")
    partial, old = _beside(path, "partial"), _beside(path, "old")
    try:
        if old.exists() and not path.exists():
            old.rename(path)  # a save was interrupted between its two renames
        if path.exists() and not (path / CONFIG).exists() and (path.is_file() or any(path.iterdir())):
            raise UserError("it holds something other than a policy, which would be lost: choose another place")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        config = policy_config.describe(policy, base, is_copied)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        write_tensors(state, partial / WEIGHTS)
        if adapter:
            save_adapter(policy.backbone, adapter, partial / ADAPTER)
        (partial / "README.md").write_text(_card(policy, card))
        _sync(partial)
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


def _base_to_name(policy: PolicyParts, path: Path, copy_base: bool | None) -> tuple[BaseReference | None, bool]:
    """The base as config.json names it, and whether its weights are written beside the adapter."""
    base = policy.base
    if base is None:
        return None, True
    place = Path(base.pretrained).resolve()
    if base.revision is None and path in (place, *place.parents):
        return None, True  # the only copy is about to be replaced
    if copy_base is None:
        copy_base = sum(x.numel() * x.element_size() for x in base_state(policy.backbone).values()) <= SMALL_BASE
    return base.seen_from(path), copy_base


def _whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gathers tensors that are sharded over ranks."""
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}


def policy_fingerprint(policy: PolicyParts) -> str:
    """Hashes all weights and statistics, to identify the policy of a record. A frozen base is hashed once."""
    state = policy.state_dict()
    if not is_adapted(policy.backbone):
        return fingerprint(state)
    base = policy.base.fingerprint if policy.base else fingerprint(base_state(policy.backbone))
    return fingerprint(
        _above_backbone(state) | {f"adapter.{name}": x for name, x in adapter_state(policy.backbone).items()}, base
    )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _above_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The policy's tensors that are not the backbone's: value head and statistics."""
    return {name: value for name, value in state.items() if not name.startswith("backbone.")}


def _buffers(policy: PolicyParts) -> set[str]:
    """Names of the backbone's buffers."""
    return {f"backbone.{name}" for name, _ in policy.network.named_buffers()}


def _sync(directory: Path) -> None:
    """Gives everything in a new directory its mode, which follows the umask, and waits until it is on the disk."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    for path in [*directory.rglob("*"), directory]:
        path.chmod(mode if path.is_dir() else mode & 0o666)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _card(policy: PolicyParts, card: str) -> str:
    size = sum(value.numel() for value in policy.parameters())
    return (
        f"# {type(policy.network).__name__} policy\n\n{card}\n\n"
        f"{size:,} parameters; chunks of {policy.chunk_size} actions x {policy.action_dim} dimensions, "
        f"{policy.action_tokenizer.vocab_size} action tokens.\n\n"
        "```python\nfrom dvla_lightning.policy import DVLAPolicy\n\n"
        'policy = DVLAPolicy.from_pretrained("<this directory>")\n'
        "chunk = policy.act(observation, num_steps=4).actions[0]  # at every decision; it draws anew each time\n```\n\n"
        "Its success on held-out episodes, where the directory says which:\n\n"
        "    dvla validate --model.policy.pretrained <this directory>\n\n"
        "`torch.manual_seed(0)` before an episode makes its draws come out the same again, and so does another "
        "`seed=...` at every decision.\n"
    )
