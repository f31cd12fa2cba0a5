"""Evaluations made up for the tests: as `dvla validate` leaves them in a run directory."""

from dvla_lightning.evaluation.header import FORMAT_VERSION
from dvla_lightning.evaluation.manifest import write_manifest
from dvla_lightning.evaluation.records import EpisodeRecord
from dvla_lightning.evaluation.specs import evaluation_seed


def write_evaluation(directory, outcomes, num_steps=4, **header):
    """An evaluation of reach; outcomes are True, False or None, which is an error. Returns the directory as text."""
    header = {
        "format_version": FORMAT_VERSION,
        "policy": "0",
        "environment": {"class": "Tabletop"},
        "split": "heldout",
        "seed": 0,
        "num_steps": {"reach": num_steps},
        "episodes_per_task": len(outcomes),
        "num_action_steps": 4,
        "sampler": {},
        "precision": "32-true",
        "remarks": [],
        "versions": {},
        **header,
    }
    records = []
    for n, success in enumerate(outcomes):
        seed = evaluation_seed(header["split"], header["seed"], "reach", n)
        error = "died" if success is None else None
        records.append(EpisodeRecord("reach", n, seed, num_steps, bool(success), 5, 2, 0.5, error))
    return str(write_manifest(directory, header, records).parent)
