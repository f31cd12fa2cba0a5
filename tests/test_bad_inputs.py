"""Bad values in configurations and options: each ends in one sentence and exit code 2, and writes nothing.

A row: the command line, and words that the sentence must contain.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "rl": ["fit", "--config", str(ROOT / "configs/rl.yaml")],
    "sft": ["fit", "--config", str(ROOT / "configs/sft.yaml")],
}
POLICY = ["--model.policy.pretrained", str(ROOT / "checkpoints/tabletop-sft")]
PPO, DATA, COLLECTOR = "model.objective.init_args.", "data.init_args.", "data.init_args.collector."
SAMPLER, BACKBONE = "model.policy.sampler.", "model.policy.backbone.init_args."

# option = value, with configs/rl.yaml -> the name of the argument and words of the sentence
RL = [
    (f"{PPO}{name}={value}", f"{name}|{words}")
    for name, values, words in (
        ("value_coef", (".nan", ".inf", -1), "at least 0"),
        ("kl_coef", (".nan", "-.inf", -0.1), "at least 0"),
        ("entropy_coef", (".nan", ".inf"), "finite"),
        ("value_warmup_iterations", (-1,), "at least 0"),
        ("value_clip", (".nan", 0, -1), "above 0"),
        ("huber_delta", (".nan", 0, ".inf"), "above 0"),
        ("target_kl", (".nan", 0, -1), "above 0"),
        ("parity_tolerance", (".nan", 0, ".inf"), "above 0"),
        ("dual_clip", (".nan", ".inf", 0.5), "dual_clip"),
        ("clip_ratio_high", (".nan", ".inf", 0), "above 0"),
        ("clip_ratio_low", (".nan", 0, 1), "clip_ratio_low"),
    )
    for value in values
] + [
    (f"{PPO}ratio_level=word", "ratio_level|word"),
    (f"{PPO}kl_kind=k9", "kl_kind|k9"),
    (f"{PPO}estimator=nope", "estimator|nope"),
    (f"{PPO}value_coef=much", "value_coef|much"),
    (f"{PPO}value_warmup_iterations=1.5", "value_warmup_iterations|1.5"),
    (f"{DATA}num_steps=0", "num_steps|at least 1"),
    (f"{DATA}num_steps=2.5", "num_steps|2.5"),
    (f"{DATA}num_steps=true", "num_steps|True"),
    (f"{DATA}gamma=.nan", "gamma|between 0 and 1"),
    (f"{DATA}gamma=1.5", "gamma|between 0 and 1"),
    (f"{DATA}gae_lambda=-0.1", "gae_lambda|between 0 and 1"),
    (f"{DATA}episodes_per_iteration=0", "episodes_per_iteration|at least 1"),
    (f"{DATA}minibatch_size=-1", "minibatch_size|at least 1"),
    (f"{DATA}ppo_epochs=0", "ppo_epochs|at least 1"),
    (f"{DATA}advantage=best", "advantage|best"),
    (f"{DATA}group_size=0", "group_size"),
    (f"{DATA}num_eval_episodes=-1", "num_eval_episodes|at least 0"),
    (f"{DATA}eval_num_steps=0", "eval_num_steps|at least 1"),
    (f"{DATA}num_recorded_episodes=-1", "num_recorded_episodes|at least 0"),
    (f"{DATA}eval_shard=3/2", "3/2"),
    (f"{DATA}tasks=juggle", "juggle"),
    (f"{DATA}schedule=nope.yaml", "nope.yaml"),
    (f"{COLLECTOR}num_envs=0", "num_envs"),
    (f"{COLLECTOR}num_workers=-1", "num_workers"),
    (f"{COLLECTOR}environment=Moon", "Moon"),
    (f"{SAMPLER}temperature=0", "temperature"),
    (f"{SAMPLER}confidence=feeling", "confidence|max_prob"),
    ("model.objective=Nope", "Nope"),
    ("data=Nope", "Nope"),
    ("model.optimizer=Nope", "Nope"),
]
SFT = [
    ("model.objective.init_args.num_views=0", "num_views|at least 1"),
    ("model.objective.init_args.schedule=steep", "schedule|steep"),
    (f"{BACKBONE}num_heads=5", "num_heads"),
    (f"{BACKBONE}image_size=31", "image_size|multiple of 16"),
    ("model.policy.backbone=Nope", "Nope"),
]
ROWS = [("rl", *row) for row in RL] + [("sft", *row) for row in SFT]


@pytest.mark.parametrize("config, option, words", ROWS, ids=[row[1] for row in ROWS])
def test_a_bad_value_in_a_configuration_is_one_sentence(config, option, words, tmp_path, refusal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*CONFIGS[config], "--trainer.default_root_dir", tmp_path / "run", "--trainer.accelerator", "cpu"]
    arguments += POLICY if config == "rl" else []
    sentence = refusal([*arguments, f"--{option}"], unchanged=tmp_path)
    assert all(word in sentence for word in words.split("|")), sentence
