"""Checks of LoRA options: refuses those that make no sense, match no module or would not survive saving."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from dvla_lightning.errors import UserError

if TYPE_CHECKING:  # importing peft takes seconds
    from peft import LoraConfig

METADATA = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
"""Fields of peft's configuration that say nothing about the computation; those of a file are not read."""
SUPPORTED = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "lora_bias", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "trainable_token_indices"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights"),
}
"""Options that survive saving and loading; peft's others need data, megatron or a quantised or repeated network."""
INITS = r"True|False|gaussian|orthogonal|olora|pissa(_niter_\d+)?"


def check_supported(options: dict[str, Any], default: LoraConfig, source: str) -> None:
    """Raises `UserError`, beginning with `source`, for an option that this package cannot save."""
    for name, value in options.items():
        is_default = value == getattr(default, name) or (not value and not getattr(default, name))
        if name == "inference_mode" and value:
            raise UserError(f"{source}: inference_mode true would train nothing; leave it out")
        if name not in SUPPORTED | METADATA and not is_default and name not in ("runtime_config", "megatron_core"):
            raise UserError(f"{source}: option {name} is not supported, choose from: {', '.join(sorted(SUPPORTED))}")


def check_values(lora: LoraConfig, source: str) -> None:
    """Raises `UserError`, beginning with `source`, for a value that makes no sense."""
    from peft import LoraConfig

    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(getattr(lora, name) or {}, dict):
            raise UserError(f"{source}: {name} must be a mapping, got {getattr(lora, name)!r}")
    check_supported({f.name: getattr(lora, f.name) for f in dataclasses.fields(lora)}, LoraConfig(), source)
    ranks = {"r": lora.r, **{f"rank_pattern {k!r}": v for k, v in (lora.rank_pattern or {}).items()}}
    alphas = {f"alpha_pattern {k!r}": v for k, v in (lora.alpha_pattern or {}).items()}
    for name, value in ranks.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{source}: {name} must be a whole number of at least 1, got {value!r}")
    for name, value in {"lora_alpha": lora.lora_alpha, **alphas}.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise UserError(f"{source}: {name} must be a number above 0, got {value!r}")
    if type(lora.lora_dropout) not in (int, float) or not 0 <= lora.lora_dropout < 1:
        raise UserError(f"{source}: lora_dropout must be in [0, 1), got {lora.lora_dropout!r}")
    if lora.bias not in ("none", "all", "lora_only"):
        raise UserError(f"{source}: bias must be none, all or lora_only, got {lora.bias!r}")
    if not re.fullmatch(INITS, str(lora.init_lora_weights)):
        raise UserError(
            f"{source}: init_lora_weights {lora.init_lora_weights!r} is not supported: choose true, false, gaussian, "
            "orthogonal, olora, pissa or pissa_niter_<number>"
        )


def check_names(lora: LoraConfig, backbone: nn.Module, check_targets: bool) -> None:
    """Raises `UserError` for an entry that matches nothing: peft ignores it as long as another one matches."""
    modules = [name for name, _ in backbone.named_modules() if name]
    parameters = [name for name, _ in backbone.named_parameters()]
    targeted = _targeted(lora, modules)
    wrapped = targeted + [name.rpartition(".")[0] for name in parameters if lora.target_parameters]
    if not isinstance(lora.trainable_token_indices, (dict, type(None))):
        raise UserError("lora.trainable_token_indices: give a mapping from the name of an embedding to its rows")
    name, layer, pattern = r"(.*\.)?{}", r"(.*?\.)?{}\.\d+\..*", r"(.*\.)?({})"
    table = [
        ("target_modules", "matches no module", name, modules),
        ("target_modules", "is left no module by the other options", name, targeted),
        ("exclude_modules", "matches no module", name, modules),
        ("modules_to_save", "matches no module", name, modules),
        ("trainable_token_indices", "matches no module", name, modules),
        ("target_parameters", "matches no parameter", name, parameters),
        ("layers_pattern", "matches no layers", layer, modules),
        ("rank_pattern", "matches nothing that gets an adapter", pattern, wrapped),
        ("alpha_pattern", "matches nothing that gets an adapter", pattern, wrapped),
    ]
    for option, problem, template, known in table if check_targets else table[2:]:
        entries = getattr(lora, option) or ()
        is_regex = template != name or isinstance(entries, str)  # as peft reads them
        for entry in [entries] if isinstance(entries, str) else sorted(entries):
            text = str(entry) if is_regex else re.escape(str(entry))
            whole = text if isinstance(entries, str) and template == name else template.format(text)
            try:
                found = any(re.fullmatch(whole, each) for each in known)
            except re.error as error:
                raise UserError(f"lora.{option}: {entry!r} is no regular expression ({error})") from error
            if not found:
                shown = known if known is parameters else {name.rpartition(".")[0] for name in parameters} & set(known)
                raise UserError(f"lora.{option}: {entry!r} {problem}; there are: {_listed(sorted(shown))}")
    indices = lora.layers_to_transform
    for index in [indices] if isinstance(indices, int) else indices or ():
        if not _targeted(dataclasses.replace(lora, layers_to_transform=[index]), modules):
            raise UserError(f"lora.layers_to_transform: no target module lies in a layer {index!r}")


def _targeted(lora: LoraConfig, modules: Sequence[str]) -> list[str]:
    """The modules that peft would give an adapter: target_modules without what the other options leave out."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if lora.target_modules is None:
        return []
    try:
        return [name for name in modules if check_target_module_exists(lora, name)]
    except re.error:  # an option is no regular expression: the caller finds out which
        return []


def _listed(names: Iterable[str]) -> str:
    """Names of modules, with the numbers of repeated layers replaced by `*`."""
    return ", ".join(dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name) for name in names))
