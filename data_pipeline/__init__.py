"""Menagerie: WebDataset shards, written and read exactly."""
