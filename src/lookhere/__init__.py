"""lookhere: train image classifiers to look where people look."""

__version__ = "0.1.0"
