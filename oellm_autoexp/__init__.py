"""Describe experiments once; the orchestrator gets them finished."""

__version__ = "0.1.0"
