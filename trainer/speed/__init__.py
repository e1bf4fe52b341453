"""How the training step is computed, not what."""
