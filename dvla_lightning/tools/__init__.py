"""Verbs that need no Trainer: one file each, plain functions whose signature is the command line."""
