"""The official Chainer code: its names and its snapshots."""
