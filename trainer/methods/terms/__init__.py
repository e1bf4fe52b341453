"""Terms of a loss: each is a file."""
