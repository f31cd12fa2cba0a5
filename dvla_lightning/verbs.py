"""The commands of `dvla`, each with what its help says first."""

TOOLS = {
    "collect": "demonstrations from the scripted expert",
    "schedule": "how many denoising steps each task needs",
    "doctor": "what works on this machine, and what to do about the rest",
    "config": "list the shipped configurations and policies, or copy them here",
    "merge": "join the shards of an evaluation",
    "report": "tables and a picture from evaluations and a run",
}
TRAINER_VERBS = {
    "fit": "train: SFT (configs/sft.yaml) or RL (configs/rl.yaml)",
    "validate": "run the held-out episodes and print the success table",
    "test": "the same under the name test",
    "predict": "run the held-out episodes and return them to Python",
}
