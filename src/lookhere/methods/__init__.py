"""Training methods: one file each, listed in one table."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from lookhere.backbone import Backbone
from lookhere.methods.base import CrossEntropyOptions, Method, MethodOptions, Stage
from lookhere.methods.sage import SAGE, Sage, SageOptions

FILES = (
    "base",
    "sage",
    "cyborg",
    "unet_gaze",
    "mentor",
    "gg_cam",
    "gradcam_mse",
    "energy",
    "blur_augmentation",
    "actdiff",
    "corm",
    "rrr",
    "harmonization",
    "gaze_gnn",
    "background_swap",
)
"""The files of this folder that hold a method, in the order in which methods are listed."""


def _methods() -> Iterator[type[Method]]:
    """Yield the class in each file that is a method with a name of its own."""
    for file in FILES:
        for value in vars(module := import_module(f"lookhere.methods.{file}")).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                yield value


COSTS = Path(__file__).with_name("costs.json")
"""Training steps relative to cross-entropy, as ``benchmarks/step_cost.py --write`` measured them."""

METHODS: dict[str, type[Method]] = {method.name: method for method in _methods()}

__all__ = [
    "COSTS",
    "METHODS",
    "SAGE",
    "CrossEntropyOptions",
    "Method",
    "MethodOptions",
    "Sage",
    "SageOptions",
    "Stage",
    "create_method",
]


def create_method(options: MethodOptions, backbone: Backbone) -> Method:
    """Return the method that the options name, around a backbone.

    Raises:
        UsageError: a backbone that the method cannot be trained with.
    """
    return METHODS[options.name](backbone, options)
