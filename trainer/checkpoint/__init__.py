"""Checkpoints: logical, committed, verified. `python -m trainer.checkpoint` looks at those of a run."""
