"""Policy directories: config.json, model.safetensors, adapter/ (peft's own format) and a README card. Never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dvla_lightning.actions.tokenizer import ActionTokenizer
from dvla_lightning.backbones.base import Backbone
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path

if TYPE_CHECKING:
    from peft import LoraConfig

    from dvla_lightning.policy import DVLAPolicy

FORMAT_VERSION = 1
KEYS = {
    *("backbone", "action_tokenizer", "action_dim", "chunk_size", "num_action_steps"),
    *("normalization", "value_hidden_dims", "sampler"),
}
"""What config.json holds beside format_version; `remarks` only where there are some."""
WEIGHTS, CONFIG, ADAPTER = "model.safetensors", "config.json", "adapter"


def resolve(pretrained: str) -> Path:
    """The local directory of a policy: `pretrained` itself, or a snapshot of that Hugging Face repository.

    Raises:
        UserError: if it is neither.
    """
    path = local_path(pretrained, "policy directory")
    if path.is_dir():
        return path
    looks_like_repository = pretrained.count("/") == 1 and not pretrained.startswith((".", "/", "~"))
    if path.exists() or not looks_like_repository:
        raise UserError(f"policy directory {pretrained!r} does not exist: give a directory that holds {CONFIG}")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(pretrained))
    except Exception as error:
        raise UserError(
            f"{pretrained!r} is neither a policy directory nor a Hugging Face repository that can be reached "
            f"({type(error).__name__})"
        ) from error


def save(policy: DVLAPolicy, path: Path, card: str) -> None:
    """Writes the directory beside its final place and then swaps it in, so that no half-written policy is ever seen."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / CONFIG).write_text(json.dumps(_describe_policy(policy), indent=2) + "\n")
    state = {name: value.detach().cpu().contiguous() for name, value in _base_state(policy).items()}
    safetensors.torch.save_file(state, partial / WEIGHTS)
    if hasattr(policy.backbone, "peft_config"):
        policy.backbone.save_pretrained(str(partial / ADAPTER))
        (partial / ADAPTER / "README.md").unlink(missing_ok=True)  # peft's empty form; the policy's own card lies above
    (partial / "README.md").write_text(_card(policy, card))
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)  # not removed before the new one is in place: deleting takes time in which we may be killed
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def read_architecture(directory: Path) -> dict[str, Any]:
    """Builds the parts named in config.json (weights still random).

    Returns:
        Keyword arguments of the policy's architecture, and its sampler, num_action_steps and remarks.

    Raises:
        UserError: if the file is missing, not valid, or of another format version.
    """
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise UserError(f"{directory} is not a policy directory: it has no {CONFIG}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): save the policy again") from error
    version = config.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, this release reads {FORMAT_VERSION}")
    remarks = config.pop("remarks", [])
    different = sorted(config.keys() ^ KEYS)
    if different:
        what = "lacks the key" if different[0] in KEYS else "has the unknown key"
        raise UserError(f"{path} {what} {different[0]!r}: save the policy again")
    try:
        config["sampler"] = Sampler(**config["sampler"])
        config["backbone"] = _instantiate(config["backbone"], Backbone, path)
        config["action_tokenizer"] = _instantiate(config["action_tokenizer"], ActionTokenizer, path)
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}: save the policy again") from error
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    return {**config, "remarks": remarks}


def load_weights(policy: DVLAPolicy, directory: Path, merge_adapter: bool) -> None:
    """Fills a freshly built policy from model.safetensors and, if present, adapter/.

    Raises:
        UserError: if a file is missing or corrupt, or names and shapes differ from the policy's.
    """
    path = directory / WEIGHTS
    try:
        state = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{directory} has no {WEIGHTS}: copy the whole policy directory") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is corrupt ({error}): copy or save the policy again") from error
    own = policy.state_dict()
    different = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
    if different:
        raise UserError(f"{path} does not fit {directory / CONFIG}: tensor {different[0]!r} differs")
    policy.load_state_dict(state)
    if (directory / ADAPTER).is_dir():
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(policy.backbone, str(directory / ADAPTER), is_trainable=not merge_adapter)
        policy.backbone = adapted.merge_and_unload() if merge_adapter else adapted


def add_adapter(backbone: nn.Module, lora: LoraConfig) -> nn.Module:
    """Freezes the backbone and adds LoRA adapters.

    Raises:
        UserError: if no module matches `target_modules`.
    """
    from peft import get_peft_model

    if lora.target_modules == "all-linear":  # peft resolves this name for transformers models only
        names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
        lora = dataclasses.replace(lora, target_modules=names)
    try:
        return get_peft_model(backbone, lora)
    except ValueError as error:
        raise UserError(f"lora: {error}") from error


def fingerprint(policy: DVLAPolicy) -> str:
    """First 16 hex digits of the SHA-256 of all weights and statistics: says which policy a record is about."""
    digest = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        if not name.startswith("reference_backbone."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _base_state(policy: DVLAPolicy) -> dict[str, Tensor]:
    """The policy's tensors without adapters and without the reference copy, under the names of an unadapted policy."""
    state = {}
    for name, value in policy.state_dict().items():
        if "lora_" in name or ".modules_to_save." in name or name.startswith("reference_backbone."):
            continue
        name = name.replace("backbone.base_model.model.", "backbone.")
        state[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
    return state


def _describe_policy(policy: DVLAPolicy) -> dict[str, Any]:
    backbone = policy.backbone
    if hasattr(backbone, "peft_config"):
        backbone = backbone.get_base_model()
    return {
        "format_version": FORMAT_VERSION,
        "backbone": _describe(backbone),
        "action_tokenizer": _describe(policy.action_tokenizer),
        "action_dim": policy.action_dim,
        "chunk_size": policy.chunk_size,
        "num_action_steps": policy.num_action_steps,
        "normalization": policy.normalization,
        "value_hidden_dims": policy.value_hidden_dims,
        "sampler": dataclasses.asdict(policy.sampler),
        **({"remarks": policy.remarks} if policy.remarks else {}),
    }


def _describe(part: Any) -> dict[str, Any]:
    return {"class_path": f"{type(part).__module__}.{type(part).__qualname__}", "init_args": part.init_args}


def _instantiate(description: dict[str, Any], base: type, source: Path) -> Any:
    module_name, _, class_name = description["class_path"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{source} names {description['class_path']!r}, which cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{source} names {description['class_path']!r}, which is not a {base.__name__}")
    try:
        return cls(**description["init_args"])
    except TypeError as error:
        raise UserError(f"{source}: {error}") from error


def _card(policy: DVLAPolicy, card: str) -> str:
    backbone = policy.backbone.get_base_model() if hasattr(policy.backbone, "peft_config") else policy.backbone
    size = sum(value.numel() for value in policy.parameters())
    return (
        f"# {type(backbone).__name__} policy\n\n{card}\n\n"
        f"{size:,} parameters; chunks of {policy.chunk_size} actions x {policy.action_dim} dimensions, "
        f"{policy.action_tokenizer.vocab_size} action tokens.\n\n"
        "```python\nfrom dvla_lightning.policy import DVLAPolicy\n\n"
        'policy = DVLAPolicy.from_pretrained("<this directory>")\n'
        "chunk = policy.act(observation, num_steps=4).actions[0]\n```\n"
    )
