"""Ranks come from srun only where srun started several tasks; everything else of SLURM is an ordinary shell."""

from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from dvla_lightning.errors import UserError
from dvla_lightning.launch.cluster import SrunRanks, check_world, cluster_environment, is_first_process

STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"}
TASK_1 = {**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
BATCH = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"}


@pytest.fixture
def slurm(monkeypatch):
    """Sets variables, after all others of a cluster are gone."""
    import os

    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR"):
            monkeypatch.delenv(name)

    def given(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return given


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "2"},
        {"SLURM_NTASKS": "many"},
        BATCH,
        {**STEP, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**TASK_1, "SLURM_JOB_NAME": "interactive"},
    ],
    ids=["allocation", "nonsense", "sbatch", "one task", "interactive"],
)
def test_these_start_their_own_ranks(variables, slurm):
    slurm(variables)
    assert type(cluster_environment()) is LightningEnvironment and is_first_process()


@pytest.mark.parametrize("variables", [TASK_1, {**BATCH, "SLURM_PROCID": "1"}, {**BATCH, "SLURM_STEP_ID": "0"}])
def test_tasks_of_srun_are_ranks(variables, slurm):
    slurm(variables)
    ranks = cluster_environment()
    assert isinstance(ranks, SrunRanks) and ranks.world_size() == 2 and not ranks.auto_requeue
    assert ranks.global_rank() == int(variables["SLURM_PROCID"])
    assert is_first_process() == (variables["SLURM_PROCID"] == "0")


def test_no_cluster_is_left_to_lightning(slurm):
    slurm({})
    assert cluster_environment() is None and is_first_process()


@pytest.mark.parametrize(("name", "value"), [("SLURM_NTASKS", "two"), ("SLURM_LOCALID", ""), ("SLURM_NODEID", "a")])
def test_broken_variables_of_srun(name, value, slurm):
    slurm({**TASK_1, name: value})
    with pytest.raises(UserError, match=f"{name} must be a whole number"):
        cluster_environment()


def trainer(world_size, num_nodes=1):
    strategy = SimpleNamespace(cluster_environment=LightningEnvironment())
    return SimpleNamespace(world_size=world_size, num_nodes=num_nodes, strategy=strategy)


def test_the_trainer_must_expect_the_tasks_there_are(slurm):
    slurm(TASK_1)
    check_world(trainer(2))
    with pytest.raises(UserError, match=r"srun started 2 processes, but .* is 1: make them equal"):
        check_world(trainer(1))


def test_two_nodes_need_somebody_who_starts_the_second(slurm):
    slurm({})
    with pytest.raises(UserError, match="start the command on every node"):
        check_world(trainer(2, num_nodes=2))
    slurm({"MASTER_ADDR": "node0"})
    check_world(trainer(2, num_nodes=2))
