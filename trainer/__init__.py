"""Menagerie: training of class-conditional GANs."""
