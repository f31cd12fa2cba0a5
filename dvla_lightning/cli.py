"""The `dvla` command. Start reading here.

    dvla fit | validate | test | predict    LightningCLI over DVLAModule (module.py) and a data module (data/)
    dvla collect | schedule | doctor | config | merge | report    plain functions, one file each (tools/)

An RL step, from here to the loss: `main` -> `run` (lightning_cli.py), where LightningCLI builds `DVLAModule(policy,
objective)` and `RolloutDataModule` -> `RolloutDataModule.collect` (data/rollouts.py) -> `Collector.run`
(rollout/collector.py) -> `DVLAPolicy.decide` (policy.py) -> `DVLAModule.training_step` -> `TrajectoryPPO`
(objectives/trajectory_ppo.py).
"""

from __future__ import annotations

import importlib
import os
import sys

from dvla_lightning import __version__
from dvla_lightning.errors import UserError
from dvla_lightning.verbs import TOOLS, TRAINER_VERBS


def main(args: list[str] | None = None) -> None:
    """Entry point; exits with code 2 and one sentence when something the user gave cannot be used."""
    # Before torch is imported: its idle threads spin otherwise, on cores that the simulators need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = sys.argv[1:] if args is None else args
    verb = args[0] if args else "--help"
    try:
        if verb in ("-h", "--help"):
            print(_overview())
        elif verb == "--version":
            print(__version__)
        elif verb in TOOLS:
            importlib.import_module(f"dvla_lightning.tools.{verb}").main(args[1:])
        elif verb in TRAINER_VERBS:
            from dvla_lightning.lightning_cli import run  # importing Lightning takes seconds; nothing above needs it

            run(args)
        else:
            raise UserError(f"unknown command {verb!r}; choose from: {', '.join([*TRAINER_VERBS, *TOOLS])}")
    except UserError as error:
        # A file name may hold what is no text, and stderr need not be able to show what is.
        encoding = sys.stderr.encoding or "utf-8"
        sentence = str(error).encode(encoding, "backslashreplace").decode(encoding)
        print(f"dvla: error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _overview() -> str:
    rows = [*TRAINER_VERBS.items(), *TOOLS.items()]
    return "\n".join(
        [
            "usage: dvla <command> [--config FILE] [options]     (dvla <command> --help explains the options)",
            "",
            *(f"  {name:<10} {text}" for name, text in rows),
        ]
    )


if __name__ == "__main__":
    main()
