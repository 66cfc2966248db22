"""Checkpoints on disk: complete or not there, verified, kept and removed. Standard library only, no torch."""
