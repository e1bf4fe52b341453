"""What only a GPU can answer, in one command: `make gpu`. docs/hardware.md says how to run it."""
