"""Flags of the Trainer, paths and environment variables that cannot be used: one sentence, exit code 2, nothing left.

Each row in this process through the command itself.
"""

from pathlib import Path

import pytest
import yaml

from dvla_lightning import cli

RL = str(Path(__file__).parents[1] / "configs/rl.yaml")

FLAGS = [
    ("max_epochs 0", "trains nothing"),
    ("max_epochs -2", "max_epochs must be at least -1, got -2"),
    ("max_epochs 1.5", "Expected int, got 1.5"),
    ("max_epochs many", "max_epochs: Expected int, got many"),
    ("max_steps 0", "trains nothing"),
    ("max_steps -5", "max_steps must be at least -1"),
    ("max_time nonsense", "is no duration"),
    ("max_time 12:00", "is no duration"),
    ("accumulate_grad_batches 0", "must be at least 1, got 0"),
    ("accumulate_grad_batches -3", "must be at least 1, got -3"),
    ("check_val_every_n_epoch 0", "data.evaluation.num_episodes: 0"),
    ("val_check_interval 0", "is no interval"),
    ("val_check_interval 0.5", "val_check_interval"),
    ("gradient_clip_val -1", "null clips nothing"),
    ("gradient_clip_val nan", "gradient_clip_val"),
    ("gradient_clip_algorithm foo", "['value', 'norm']"),
    ("limit_train_batches 0", "trains nothing"),
    ("limit_train_batches 0.5", "limit_train_batches"),
    ("limit_train_batches -1", "limit_train_batches"),
    ("limit_val_batches 1.5", "limit_val_batches"),
    ("limit_val_batches 0.5", "limit_val_batches"),
    ("overfit_batches 1", "would evaluate on training data"),
    ("reload_dataloaders_every_n_epochs -1", "reload_dataloaders_every_n_epochs"),
    ("log_every_n_steps -1", "log_every_n_steps must be at least 0"),
    ("num_sanity_val_steps -2", "num_sanity_val_steps must be at least -1"),
    ("fast_dev_run -1", "fast_dev_run"),
    ("deterministic maybe", "Expected bool or 'warn', got maybe"),
    ("profiler fast", "['simple', 'advanced', 'pytorch', 'xla']"),
    ("precision 64-true", "64-true is not supported"),
    ("precision transformer-engine", "use bf16-mixed"),
    ("precision half", "'bf16-mixed'"),
    ("precision 17", "'32-true'"),
    ("devices 0", "must be at least 1"),
    ("devices -1", "a CPU has no numbered devices"),
    ("devices -2", "must be at least 1"),
    ("devices two", "is no number of devices"),
    ("devices [0]", "a CPU has no numbered devices"),
    ("accelerator gpuu", "Available names are"),
    ("accelerator tpu", "use cpu, gpu or auto"),
    ("strategy dpp", "invalid strategy name"),
    ("strategy deepspeed", "use ddp, or fsdp"),
    ("strategy ddp_spawn", "use ddp, or fsdp"),
    ("strategy fsdp", "requires a GPU"),
    ("num_nodes 0", "num_nodes must be at least 1"),
    ("num_nodes 2", "start the command on every node"),
    ("use_distributed_sampler true", "runs episodes twice"),
    ("logger foo", "logger"),
    ("plugins Foo", "plugins"),
    ("callbacks.monitor loss", "callbacks"),
    ("max_epoch 3", "did you mean trainer.max_epochs?"),
    ("max_epochss 3", "did you mean trainer.max_epochs?"),
    ("devics 2", "did you mean trainer.devices?"),
    ("gradient_clip 1", "did you mean trainer.gradient_clip_"),
    ("default_root_dir ''", "is no path"),
    ("default_root_dir s3://bucket/run", "s3:// is not supported"),
    ("default_root_dir $NOT_SET_ANYWHERE/run", "NOT_SET_ANYWHERE is not set"),
    ("default_root_dir ~no-such-user/run", "no such user"),
    ("default_root_dir {file}", "is a file"),
    ("default_root_dir {file}/run", "lies below"),
]
OTHERS = [
    ("--trainr.max_epochs 3", "did you mean trainer.max_epochs?"),
    ("--ckpt_pat last", "did you mean ckpt_path?"),
    ("--data.num_step 3", "did you mean num_steps?"),
    ("--data.collector.num_env 3", "did you mean num_envs?"),
    ("--data.collector.environment Tabeltop", "did you mean Tabletop? (known are: Libero, RoboTwin, Tabletop"),
    ("--model.objective TrajectoryPO", "did you mean TrajectoryPPO?"),
    ("--data Rollouts", "known are: DemonstrationDataModule"),
    ("--seed_everything -1", "from 0 to 4294967295"),
    ("--seed_everything 4294967296", "from 0 to 4294967295"),
    ("--seed_everything 1.5", "got 1.5"),
    ("--seed_everything abc", "got abc"),
    ("--seed_everything false", "got false"),
    ("--data.seed 5", "data.seed is the seed of the run: set seed_everything"),
    ("--data.reschedule.every 1 --data.reschedule.num_steps [0]", "num_steps must be between 1 and 8"),
    ("--model.optimizer.lr -1", "model.optimizer: Invalid learning rate: -1.0"),
    ("--model.optimizer.lr .nan", "model.optimizer: Invalid learning rate: nan"),
    ("--model.optimizer.lr .inf", "model.optimizer: lr must be a number at least 0, got inf"),
    ("--ckpt_path gs://bucket/last.ckpt", "gs:// is not supported"),
    ("--ckpt_path $NOT_SET_ANYWHERE/last.ckpt", "NOT_SET_ANYWHERE is not set"),
    ("--ckpt_path ~/nothing.ckpt", "does not exist"),
    ("--model.policy.pretrained hf://org/name", "hf:// is not supported"),
    ("--model.policy.pretrained $NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is not set"),
    ("--data.schedule http://host/s.yaml", "http:// is not supported"),
    ("--config nope.yaml", "nope.yaml"),
]
KEYS = [
    ({"trainer": {"max_epoch": 3}}, "did you mean trainer.max_epochs?"),
    ({"trainr": {"max_epochs": 3}}, "did you mean trainer.max_epochs?"),
    ({"data": {"init_args": {"num_step": 3}}}, "did you mean num_steps?"),
    ({"data": {"init_args": {"seed": 5}}}, "data.seed is the seed of the run: set seed_everything"),
    ({"seed_everything": 5, "data": {"init_args": {"seed": 0}}}, "set seed_everything"),
    ({"model": {"policy": {"pretraned": "x"}}}, "did you mean model.policy.pretrained?"),
    ({"model": {"objective": {"class_path": "TrajectoryPO"}}}, "did you mean TrajectoryPPO?"),
]
DDP = "--trainer.strategy ddp --trainer.devices 2"
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "2"}
VARIABLES = [
    ({"MASTER_PORT": "abc"}, DDP, "MASTER_PORT must be a port"),
    ({"MASTER_PORT": "70000"}, DDP, "MASTER_PORT must be a port"),
    ({"STANDALONE_PORT": "x"}, DDP, "STANDALONE_PORT must be a port"),
    (SRUN, "", "srun started 2 processes"),
    ({**SRUN, "SLURM_NTASKS": "two"}, "", "SLURM_NTASKS must be a whole number"),
    ({**SRUN, "SLURM_LOCALID": "x"}, "", "SLURM_LOCALID must be a whole number"),
]
SIMULATORS = [
    ("RoboTwin", "ROBOTWIN_ROOT", "{file}", "{file}"),
    ("RoboTwin", "ROBOTWIN_ROOT", "$NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is not set"),
    ("Libero", "LIBERO_ASSETS", "/nowhere/at/all", "/nowhere/at/all"),
    ("Libero", "LIBERO_ASSETS", "s3://bucket/assets", "s3:// is not supported"),
]
UNHARMED = [
    {"OMP_NUM_THREADS": "abc"},
    {"CUDA_VISIBLE_DEVICES": "nonsense"},
    {"MUJOCO_GL": "nonsense"},
    {"TMPDIR": "/no/such/place"},
    {"HF_HOME": "/proc/nothing"},
    {"SLURM_NTASKS": "two"},
    {"MASTER_PORT": "abc"},
]


@pytest.fixture
def command(tiny_policy, tmp_path, monkeypatch, quiet_logging):
    """A run of seconds; what is asked for comes last."""
    for name in ("SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    tiny_policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "file").write_text("x")
    words = [
        "fit",
        "--config",
        RL,
        "--model.policy.pretrained",
        tmp_path / "policy",
        "--data.evaluation.num_episodes",
        5,
    ]
    words += ["--trainer.default_root_dir", tmp_path / "run", "--trainer.accelerator", "cpu", "--trainer.max_epochs", 1]
    words += ["--data.episodes_per_iteration", 5, "--data.collector.progress", "false"]
    return [str(word) for word in [*words, "--trainer.enable_progress_bar", "false"]]


def expect_sentence(command, more, expected, tmp_path, refusal):
    fill, before = str(tmp_path / "file"), set(tmp_path.rglob("*"))
    line = refusal([*command, *("" if word == "''" else word.replace("{file}", fill) for word in more.split())])
    assert expected.replace("{file}", fill) in line
    # `dvla collect` begins with an empty data set, which the same command continues.
    written = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert written <= ({"data"} if command[0] == "collect" else set())


@pytest.mark.parametrize(("flag", "expected"), FLAGS)
def test_a_flag_of_the_trainer(flag, expected, command, tmp_path, refusal):
    expect_sentence(command, f"--trainer.{flag}", expected, tmp_path, refusal)


@pytest.mark.parametrize(("words", "expected"), OTHERS)
def test_another_option(words, expected, command, tmp_path, refusal):
    expect_sentence(command, words, expected, tmp_path, refusal)


@pytest.mark.parametrize(("keys", "expected"), KEYS)
def test_a_key_in_yaml(keys, expected, command, tmp_path, refusal):
    (tmp_path / "more.yaml").write_text(yaml.dump(keys))
    expect_sentence(command, f"--config {tmp_path / 'more.yaml'}", expected, tmp_path, refusal)


@pytest.mark.parametrize(("variables", "words", "expected"), VARIABLES)
def test_an_environment_variable(variables, words, expected, command, tmp_path, refusal, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("{file}", str(tmp_path / "file")))
    expect_sentence(command, words, expected, tmp_path, refusal)


@pytest.mark.parametrize(("environment", "name", "value", "expected"), SIMULATORS)
def test_a_variable_of_a_simulator(environment, name, value, expected, tmp_path, refusal, monkeypatch):
    if environment == "Libero":
        pytest.importorskip("mujoco")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(name, value.replace("{file}", str(tmp_path / "file")))
    words = f"--collector.environment {environment} --out {tmp_path / 'data'} --num_episodes 100"
    expect_sentence(["collect"], words, expected, tmp_path, refusal)


@pytest.mark.parametrize("variables", UNHARMED, ids=str)
def test_a_variable_that_is_not_this_runs_business_does_no_harm(variables, command, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cli.main(command)
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


def test_tools_take_no_abbreviations_either(refusal):
    refusal(["merge", "a", "b", "--ou", "c"])
    assert "did you mean num_episodes?" in refusal(["collect", "--num_episode", "5"])


def test_the_command_line_explains_auto(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and '"auto" (fit only): last if there is one, else a new run' in out
