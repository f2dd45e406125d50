"""Training for any Trainer: exact resume, checkpoints, signals, the record of a run."""
