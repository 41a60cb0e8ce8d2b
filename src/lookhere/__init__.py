"""lookhere: train image classifiers to look where people look.

The names below are the public API. They are imported when first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "SAGE",
    "DataError",
    "LookhereError",
    "TrainingError",
    "UsageError",
    "ViewOptions",
    "Views",
    "jensen_shannon",
    "sage_loss",
    "saliency_contrastive_embedding",
    "saliency_logit_alignment",
    "saliency_views",
]

if TYPE_CHECKING:
    from lookhere.errors import DataError, LookhereError, TrainingError, UsageError
    from lookhere.losses import (
        jensen_shannon,
        sage_loss,
        saliency_contrastive_embedding,
        saliency_logit_alignment,
    )
    from lookhere.methods.sage import SAGE
    from lookhere.views import ViewOptions, Views, saliency_views

_HOMES = ("errors", "losses", "views", "methods.sage")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"lookhere.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'lookhere' has no attribute '{name}'")
