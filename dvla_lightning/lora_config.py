"""peft's options of LoRA adapters as the command line reads them; importing peft takes seconds."""

from __future__ import annotations

import dataclasses

from peft import LoraConfig


@dataclasses.dataclass
class LoraOptions(LoraConfig):
    """peft's own, but for `init_lora_weights`.

    Its type there lists the literal text "pissa_niter_[number of iters]" in the place of every such name. Which names
    are allowed is said by `lora_options.check_values`.
    """

    init_lora_weights: bool | str = dataclasses.field(  # type: ignore[assignment]
        default=True,
        metadata=LoraConfig.__dataclass_fields__["init_lora_weights"].metadata,  # peft looks up its variants there
    )
