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
TOKENIZER, RESCHEDULE = "model.policy.action_tokenizer.init_args.", "data.init_args.reschedule"
QUANTILES = "model.policy.action_tokenizer=QuantileBins --model.policy.action_tokenizer.init_args"

# option = value, with configs/rl.yaml -> the name of the argument and words of the sentence
RL = [
    *(
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
    ),
    (f"{PPO}ratio_level=word", "ratio_level|word"),
    (f"{PPO}kl_kind=k9", "kl_kind|k9"),
    (f"{PPO}estimator=nope", "estimator|nope"),
    (f"{PPO}value_coef=much", "value_coef|much"),
    (f"{PPO}value_warmup_iterations=1.5", "value_warmup_iterations|1.5"),
    (f"{DATA}num_steps=0", "num_steps|at least 1"),
    (f"{DATA}num_steps=2.5", "num_steps|2.5"),
    (f"{DATA}num_steps=true", "num_steps|True"),
    (f"{DATA}gamma=.nan", "gamma|at least 0 and at most 1"),
    (f"{DATA}gamma=1.5", "gamma|at least 0 and at most 1"),
    (f"{DATA}gae_lambda=-0.1", "gae_lambda|at least 0 and at most 1"),
    (f"{DATA}episodes_per_iteration=0", "episodes_per_iteration|at least 1"),
    (f"{DATA}minibatch_size=-1", "minibatch_size|at least 1"),
    (f"{DATA}ppo_epochs=0", "ppo_epochs|at least 1"),
    (f"{DATA}advantage=best", "advantage|best"),
    (f"{DATA}group_size=0", "group_size"),
    (f"{DATA}evaluation.num_episodes=-1", "num_episodes|at least 0"),
    (f"{DATA}evaluation.num_steps=0", "num_steps|at least 1"),
    (f"{DATA}evaluation.num_recorded_episodes=-1", "num_recorded_episodes|at least 0"),
    (f"{DATA}evaluation.shard=3/2", "3/2"),
    (f"{DATA}tasks=juggle", "juggle"),
    (f"{DATA}schedule=nope.yaml", "nope.yaml"),
    (f"{COLLECTOR}num_envs=0", "num_envs"),
    (f"{COLLECTOR}num_workers=-1", "num_workers"),
    (f"{COLLECTOR}environment=Moon", "Moon"),
    *(
        (f"{SAMPLER}{name}={value}", f"sampler|{name}|got")
        for name, values in (
            ("temperature", ("0", "-1", ".nan", ".inf", "[1]", "warm")),
            ("selection_temperature", ("-1", ".nan", ".inf", "hot")),
            ("remask_threshold", ("-0.1", "1", ".nan", "x")),
            ("remask_drop", ("0", "1.5", ".nan")),
            ("confidence", ("feeling", "3")),
            ("schedule", ("steep", "3")),
            ("greedy", ("maybe", "1")),
        )
        for value in values
    ),
    (f"{SAMPLER}greedy='false'", "sampler|greedy|bool"),  # the text would be true to Python
    *((f"{SAMPLER}{name}=true", f"sampler|{name}|True") for name in ("temperature", "remask_drop")),
    (f"{SAMPLER[:-1]}=3", "sampler|SamplerOverrides"),
    *(
        (f"{COLLECTOR}{name}={value}", f"collector|{name}|number above 0, got")
        for name in ("reset_timeout", "step_timeout")
        for value in ("0", "-1", ".nan", ".inf")
    ),
    *((f"{COLLECTOR}{name}=soon", f"collector|{name}|soon") for name in ("reset_timeout", "step_timeout")),
    (f"{COLLECTOR}step_timeout=true", "step_timeout|True"),
    (f"{COLLECTOR}num_envs=true", "num_envs|True"),
    (f"{COLLECTOR}num_workers=two", "num_workers|two"),
    (f"{COLLECTOR}max_retries=-1", "max_retries|at least 0, got -1"),
    (f"{COLLECTOR}max_retries=1.5", "max_retries|1.5"),
    *((f"{COLLECTOR}{name}='false'", f"{name}|bool") for name in ("progress", "reproducible")),
    *((f"{DATA}{name}='false'", f"{name}|bool") for name in ("bootstrap_truncated", "evaluation.save_videos")),
    *(
        (f"{DATA}{name}=null", name)
        for name in (
            *(
                "num_steps",
                "minibatch_size",
                "gamma",
                "group_size",
                "evaluation.seed",
                "tasks",
                "evaluation.num_episodes",
            ),
            *("bootstrap_truncated", "evaluation.save_videos", "evaluation.split", "advantage", "evaluation"),
        )
    ),
    *((f"{PPO}{name}=null", name) for name in ("value_coef", "clip_ratio_low", "estimator")),
    *((f"{DATA}{name}=true", f"{name}|True") for name in ("minibatch_size", "ppo_epochs", "group_size", "gamma")),
    (f"{DATA}tasks=[]", "no task given|reach"),
    (f"{DATA}tasks=[reach,reach]", "'reach' is given twice"),
    (f"{DATA}tasks=[1]", "tasks|[1]"),
    (f"{DATA}tasks=5", "unknown task '5'"),
    (f"{DATA}tasks={{reach: 1}}", "tasks|str"),
    (f"{DATA}tasks=[all]", "unknown task 'all'"),
    (f"{DATA}schedule=", "step schedule|is no path"),
    (f"{DATA}schedule=[1]", "schedule|[1]"),
    *(
        (f"{DATA}evaluation.shard={shard}", f"shard|{shard}|i/n")
        for shard in ("1", "a/b", "0/0", "-1/2", " 0/2", "0 / 2")
    ),
    (f"{DATA}evaluation.seed=1.5", "seed|1.5"),
    (f"{DATA}evaluation.split=train", "split|heldout"),
    (f"{DATA}max_refills=-1", "max_refills|at least 0, got -1"),
    (f"{RESCHEDULE}.every=0", "data.reschedule: every must be a number at least 1, got 0"),
    (f"{RESCHEDULE}.every=true", "reschedule|every|True"),
    (f"{RESCHEDULE}.every=often", "reschedule|every|often"),
    (f"{RESCHEDULE}=5", "reschedule|Rescheduling"),
    (f"{RESCHEDULE}={{num_steps: [1]}}", "reschedule|every"),
    *(
        (f"{RESCHEDULE}={{every: 1, {name}: {value}}}", f"{name}|{words}")
        for name, value, words in (
            ("num_steps", "[]", "list of different numbers"),
            ("num_steps", "[1, 1]", "list of different numbers"),
            ("num_steps", 4, "list"),
            ("num_steps", "[true]", "True"),
            ("episodes_per_task", 0, "at least 1"),
            ("episodes_per_task", ".nan", "nan"),
            ("margin", ".nan", "between 0 and 1"),
            ("margin", 0, "between 0 and 1"),
            ("margin", 1, "between 0 and 1"),
            ("confidence", ".nan", "between 0.5 and 1"),
            ("confidence", 0.5, "between 0.5 and 1"),
            ("marging", 0.1, "did you mean margin?"),
        )
    ),
    *((f"model.value_lr={value}", "value_lr|at least 0, got") for value in ("-1", ".nan", ".inf")),
    ("model.value_lr=high", "value_lr|high"),
    ("model.value_lr=true", "value_lr|True"),
    *((f"model.max_skipped_updates={value}", f"max_skipped_updates|{value}") for value in ("-1", "1.5", "many")),
    ("model.policy.num_action_steps=0", "num_action_steps|got 0"),
    ("model=5", "model|5"),
    ("trainer=5", "trainer|5"),
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
    ("model.objective.init_args.num_views=null", "num_views"),
    *(
        (f"{DATA}batch_size={value}", f"batch_size|{words}")
        for value, words in ((0, "at least 1, got 0"), ("null", "null"))
    ),
    *((f"{DATA}batch_size={value}", f"batch_size|{value}") for value in ("True", "1.5", "many")),
    (f"{BACKBONE}num_positions=8", "num_positions|follows from chunk_size x action_dim, leave it out"),
    (f"{BACKBONE}vocab_size=32", "vocab_size|follows from the action tokenizer, leave it out"),
    *((f"{TOKENIZER}num_bins={value}", f"num_bins|at least 2|got {value}") for value in (1, -5, 10**12)),
    *((f"{TOKENIZER}num_bins={value}", f"num_bins|{value}") for value in ("True", "2.5", "many")),
    *((f"{QUANTILES}={{num_bins: 32, action_dim: {dim}}}", f"action_dim|at least 1, got {dim}") for dim in (0, -1)),
    (f"{QUANTILES}={{num_bins: {10**12}, action_dim: 2}}", "num_bins|at most"),
    (f"{QUANTILES}={{num_bins: 32}}", "action_tokenizer|action_dim"),
    ("model.policy.action_tokenizer=Unifrom", "did you mean UniformBins?"),
    ("model.policy.backbone=minibackbone", "backbone|did you mean MiniBackbone?"),
    *(
        (f"model.policy.normalization={{actions: [{{{group}}}]}}", f"normalization|{words}")
        for group, words in (
            ("dims: [0], mode: foo", "actions: mode|foo"),
            ("dims: 0, mode: identity", "actions: dims: Expected a <class 'list'>. Got value: 0"),
            ("dim: [0], mode: identity", "actions|did you mean dims?"),
            ("dims: [0], mode: mean_std, factor: -1", "factor must be a number above 0, got -1.0"),
            ("dims: [0], mode: identity", "each of the dimensions 0 to 1 once"),
        )
    ),
    ("model.policy.normalization={action: quantile}", "normalization|did you mean actions?"),
    ("model.policy.trusted_modules=mine", "trusted_modules: Expected a <class 'list'>"),
    ("model.policy.chunk_size=0", "chunk_size|at least 1"),
    ("model.policy.value_hidden_dims=[0]", "value_hidden_dims|at least 1"),
    (f"{BACKBONE}text_length=-1", "text_length|at least 1, got -1"),
]
ROWS = [("rl", *row) for row in RL] + [("sft", *row) for row in SFT]


@pytest.mark.parametrize("config, option, words", ROWS, ids=[row[1] for row in ROWS])
def test_a_bad_value_in_a_configuration_is_one_sentence(config, option, words, tmp_path, refusal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*CONFIGS[config], "--trainer.default_root_dir", tmp_path / "run", "--trainer.accelerator", "cpu"]
    arguments += POLICY if config == "rl" else []
    sentence = refusal([*arguments, *f"--{option}".replace(" --", "\n--").split("\n")], unchanged=tmp_path)
    assert all(word in sentence for word in words.split("|")), sentence
