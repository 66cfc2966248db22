"""Trainings that are described in Python: found, validated, swept, launched."""
