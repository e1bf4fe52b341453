"""What a run writes for people: curves, pictures, the log."""
