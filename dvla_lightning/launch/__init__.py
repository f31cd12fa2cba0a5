"""Between the command line and the Trainer: the directory of a run, its flags, and where its ranks come from."""
