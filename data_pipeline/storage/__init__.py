"""Folders and objects behind paths and URLs, in three layers.

- `files`: local files that are replaced whole or not at all; the trainer uses it too.
- `retrying`: the calls of one fsspec file system, with time limits and bounded retries; knows no folder.
- `folder`: names in one folder, local or remote; its errors are sentences for the user.

`trainer.foundation.stores` is apart: checkpoints decide themselves what a failure means (see there).
"""
