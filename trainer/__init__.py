"""Menagerie: training of class-conditional GANs."""

import os

PARENT = os.getppid()
"""The process that started this one, asked before the imports of seconds, during which it may end."""
