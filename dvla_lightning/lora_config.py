"""peft's options of LoRA adapters as the command line reads them; importing peft takes seconds."""

from __future__ import annotations

import dataclasses

from peft import LoraConfig


@dataclasses.dataclass
class LoraOptions(LoraConfig):
    """peft's `LoraConfig` with another type of `init_lora_weights`.

    peft's type has the literal text "pissa_niter_[number of iters]" in the place of every such name. The names that are
    allowed are in `lora_options.check_values`.
    """

    init_lora_weights: bool | str = dataclasses.field(  # type: ignore[assignment]
        default=True,
        metadata=LoraConfig.__dataclass_fields__["init_lora_weights"].metadata,  # peft looks up its variants there
    )
