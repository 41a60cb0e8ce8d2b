"""Training methods: one file each, listed in one table."""

from __future__ import annotations

from lookhere.backbone import Backbone
from lookhere.methods.base import CrossEntropyOptions, Method, MethodOptions, Stage
from lookhere.methods.sage import SAGE, Sage, SageOptions

METHODS: dict[str, type[Method]] = {method.name: method for method in (Method, Sage)}

__all__ = [
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
    """Return the method that the options name, around a backbone."""
    return METHODS[options.name](backbone, options)
