"""LoRA adapters on a policy's backbone (peft): options are checked, files are safetensors and JSON, never pickle."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dvla_lightning.errors import UserError
from dvla_lightning.lora_options import METADATA, SUPPORTED, check_names, check_supported, check_values
from dvla_lightning.policy_tensors import read_tensors, write_tensors

if TYPE_CHECKING:  # importing peft takes seconds
    from peft import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REWRITING_INITS = r"olora|pissa(_niter_\d+)?"
"""Initialisations that move a part of the base weights into the adapter."""


def is_adapted(backbone: nn.Module) -> bool:
    """Whether the backbone carries adapters."""
    return hasattr(backbone, "peft_config")


def add_adapter(backbone: nn.Module, lora: LoraConfig) -> nn.Module:
    """Freezes the backbone and adds LoRA adapters.

    Args:
        backbone: without adapters; changed in place.
        lora: not changed. Without target_modules and target_parameters the backbone's `lora_targets` get an adapter;
            where it names none, and for target_modules "all-linear", every linear layer does.

    Returns:
        peft's wrapper around the backbone.

    Raises:
        UserError: for an option that makes no sense, matches no module or would not survive saving.
    """
    lora = copy.deepcopy(lora)  # peft writes into it
    if lora.target_modules is None and not lora.target_parameters:
        lora.target_modules = getattr(backbone, "lora_targets", None) or "all-linear"
    is_everywhere = isinstance(lora.target_modules, str) and lora.target_modules.lower() == "all-linear"
    if is_everywhere:  # peft resolves this name for transformers models only
        linear = {name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
        lora.target_modules = linear  # type: ignore[assignment]  # peft itself makes a set of a list
    if is_everywhere and lora.layers_to_transform is not None:  # as peft says of "all-linear", and only of it
        raise UserError("lora.layers_to_transform chooses among target_modules: give their names")
    check_values(lora, "lora")
    check_names(lora, backbone, check_targets=not is_everywhere)
    adapted = _inject(backbone, lora, "lora")
    _pad_ranks(adapted)
    return adapted


def _pad_ranks(adapted: Any) -> None:
    """Fills adapters up to the rank that was asked for.

    Those of pissa and olora have no higher rank than their layer's smaller side, which the configuration cannot say.
    """
    for module in adapted.modules():
        for adapter, rank in getattr(module, "r", {}).items() if hasattr(module, "lora_A") else ():
            if adapter in module.lora_A and (missing := rank - len(module.lora_A[adapter].weight)) > 0:
                down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
                down.data = nn.functional.pad(down.data, (0, 0, 0, missing))
                up.data = nn.functional.pad(up.data, (0, missing))


def _inject(backbone: nn.Module, lora: LoraConfig, source: str) -> nn.Module:
    from peft import get_peft_model

    before = set(backbone.state_dict())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked here, or is about peft's own files
            adapted = get_peft_model(backbone, lora)
    except Exception as error:  # peft raises whatever it likes for options that do not fit
        raise UserError(f"{source}: {' '.join(str(error).split())}") from error
    if set(base_state(adapted)) != before:
        raise UserError(f"{source}: these options change the names of the backbone's own weights; leave them out")
    return adapted


def base_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's tensors without adapters, under the names they have without adapters."""
    state = backbone.state_dict()
    if not is_adapted(backbone):
        return state
    plain = {}
    for name, value in state.items():
        parts = name.removeprefix("base_model.model.").split(".")
        if not _is_of_adapter(parts):
            plain[".".join(p for p in parts if p not in ("base_layer", "original_module", "token_adapter"))] = value
    return plain


def has_frozen_base(backbone: nn.Module) -> bool:
    """Whether the backbone is adapted and nothing below the adapter is trained or rewritten."""
    if not is_adapted(backbone) or rewritten_names(backbone):
        return False
    trained = (name for name, parameter in backbone.named_parameters() if parameter.requires_grad)
    return all(_is_of_adapter(name.split(".")) for name in trained)


def _is_of_adapter(parts: Sequence[str]) -> bool:
    """Whether a tensor, named by its parts, belongs to an adapter."""
    return any(part.startswith(("lora_", "modules_to_save", "trainable_tokens_")) for part in parts)


def rewritten_names(backbone: nn.Module) -> set[str]:
    """Frozen parameters that differ from the policy directory's, because an adapter took over a part of them."""
    if not is_adapted(backbone) or not re.fullmatch(REWRITING_INITS, str(_config(backbone).init_lora_weights)):
        return set()
    return {name for name, _ in backbone.named_parameters() if name.endswith(".base_layer.weight")}


def save_adapter(backbone: nn.Module, state: dict[str, Tensor], directory: Path) -> None:
    """Writes peft's two files, with the tensors of `adapter_state`.

    The base weights beside them are as initialisation left them: it must not run again.
    """
    directory.mkdir()
    config = copy.deepcopy(_config(backbone))
    config.init_lora_weights = True
    config.save_pretrained(str(directory))
    write_tensors(state, directory / WEIGHTS)


def load_adapter(backbone: nn.Module, directory: Path) -> nn.Module:
    """Adds the adapter that `save_adapter` wrote; it is trainable.

    Raises:
        UserError: if a file is missing, damaged, a pickle, or does not fit the backbone.
    """
    from peft import set_peft_model_state_dict

    lora = _read_config(directory)
    pickled = directory / "adapter_model.bin"
    if pickled.exists() and not (directory / WEIGHTS).exists():
        raise UserError(f"{pickled} is a pickle, which is never loaded: save the adapter as {WEIGHTS}")
    check_values(lora, str(directory / CONFIG))
    adapted = _inject(backbone, lora, str(directory / CONFIG))
    state = read_tensors(directory / WEIGHTS, adapter_state(adapted), f"the backbone and {CONFIG}")
    set_peft_model_state_dict(adapted, state)
    return adapted


def merge_adapter(adapted: Any, directory: Path) -> nn.Module:
    """The backbone with its adapter added into its weights.

    Raises:
        UserError: if peft cannot merge this adapter.
    """
    names = set(base_state(adapted))
    try:
        merged = adapted.merge_and_unload()
    except Exception as error:  # peft raises whatever it likes
        raise UserError(f"{directory} cannot be merged ({error}): continue to train it without lora") from error
    if set(merged.state_dict()) != names:
        raise UserError(f"{directory} cannot be merged: continue to train it without lora")
    return merged


def adapter_state(adapted: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors, under the names of peft's file."""
    from peft import get_peft_model_state_dict

    # No embeddings: the base weights lie beside the adapter, and peft might ask a hub about them.
    return get_peft_model_state_dict(adapted, save_embedding_layers=False)


def _config(adapted: Any) -> LoraConfig:
    if list(adapted.peft_config) != ["default"]:
        raise UserError(f"a policy holds one adapter, this backbone has {', '.join(adapted.peft_config)}")
    return adapted.peft_config["default"]


def _read_config(directory: Path) -> LoraConfig:
    from peft import LoraConfig

    path = directory / CONFIG
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise ValueError("not the configuration of a LoRA adapter")
        options = {name: value for name, value in config.items() if name not in METADATA}
        # The weights come from a file. peft's own loading would import what some of the options name.
        options |= {"init_lora_weights": True, "inference_mode": False}
        fields = {field.name for field in dataclasses.fields(LoraConfig)}
        unknown = sorted(set(options) - fields)
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}")
        check_supported(options, LoraConfig(), str(path))
        return LoraConfig(**{name: value for name, value in options.items() if name in SUPPORTED})
    except FileNotFoundError:
        raise UserError(f"{directory} has no {CONFIG}: copy the whole policy directory") from None
    except UserError:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be used ({error}): copy or save the policy again") from error
