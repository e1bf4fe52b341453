"""Folders and objects behind paths and URLs."""
