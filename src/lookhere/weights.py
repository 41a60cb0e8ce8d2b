"""Initial weights: a classifier by name, of timm's or ours, from timm's hub or its cache, a local file, or random.

Nothing is unpickled, and an interrupted download never turns into random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import get_session
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from lookhere.backbone import Backbone, has_interface
from lookhere.errors import UsageError, nearest
from lookhere.options import Options
from lookhere.pvig import NETWORKS, create_pvig


class BackboneOptions(Options):
    """Which network, and from where it starts."""

    name: str = "resnet50"
    """A timm model, with a weights tag if wanted: resnet50, resnet50.tv_in1k, swin_tiny_patch4_window7_224, …; or
    pvig_ti, pvig_s, pvig_m, pvig_b, the Pyramid ViG that gaze-gnn is made of."""
    weights: str = Field("pretrained", min_length=1)
    """``pretrained`` (timm's, from its hub or local cache), ``random``, or the path of a .safetensors file."""


def create_backbone(options: BackboneOptions, classes: int, size: int) -> Backbone:
    """Return a classifier with a fresh head.

    Args:
        options: name and weights.
        classes: number of classes.
        size: side of the images in pixels; needed by networks that are built for one size.

    Raises:
        UsageError: unknown name, a size that the network cannot take, or weights that cannot be had. Random weights
            are used only where asked for.
    """
    file = resolve_weights(options)
    try:
        if options.name in NETWORKS:
            network = create_pvig(options.name, classes, size)
            if file is not None:
                network.load_pretrained(load_file(file))
            return Backbone(network)
        return _checked(_create_timm(options.name, classes, size, file), options.name)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        if file is None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"backbone.weights: {file} does not fit {options.name}: {reason} …") from error


def _create_timm(name: str, classes: int, size: int, file: Path | None) -> nn.Module:
    arguments: dict[str, Any] = {"num_classes": classes}
    config = timm.models.get_pretrained_cfg(name)
    if config and config.fixed_input_size:
        arguments["img_size"] = size
    if file is None:
        return timm.create_model(name, pretrained=False, **arguments)
    overlay = {"file": str(file)}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    _check_complete(model, file)
    return model


def resolve_weights(options: BackboneOptions) -> Path | None:
    """Return the file of a backbone's initial weights, fetched if need be, or None for random ones.

    Raises:
        UsageError: unknown name, or weights that cannot be had.
    """
    if options.name not in NETWORKS and not timm.is_model(options.name.split(".")[0]):
        known = [*timm.list_models(), *NETWORKS]
        raise UsageError(f"backbone.name: timm has no model '{options.name}'{nearest(options.name, known)}")
    if options.weights == "random":
        return None
    return _hub_file(options.name) if options.weights == "pretrained" else _weights_file(Path(options.weights))


def _checked(model: nn.Module, name: str) -> Backbone:
    if not has_interface(model):
        raise UsageError(
            f"backbone.name: {name} does not classify by one linear layer on an embedding; take another model"
        )
    return Backbone(model)


def _weights_file(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(
            f"backbone.weights: no file {path}; give 'pretrained', 'random' or the path of a .safetensors file"
        )
    if path.suffix != ".safetensors":
        raise UsageError(
            f"backbone.weights: {path} is not a .safetensors file, and pickled files are not loaded, since they can "
            "run code; convert it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'x.safetensors')"
        )
    return path


def _check_complete(model: Any, file: Path) -> None:
    """Raise KeyError if the file lacks weights: with another number of classes timm leaves such at random silently."""
    with safe_open(file, "pt") as tensors:
        there = set(tensors.keys())
    head = model.default_cfg["classifier"]
    wanted = {name for name, _ in model.named_parameters() if not name.startswith(head)}
    if lacking := sorted(wanted - there):
        raise KeyError(f"it lacks {len(lacking)} of {len(wanted)} weights, such as {lacking[0]}")


def _hub_file(name: str) -> Path:
    """Return timm's pretrained weights of a model, from the local cache or the hub; safetensors only."""
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UsageError(f"backbone.weights: timm has no pretrained weights for {name}; use --weights random or a file")
    repository, file = config.hf_hub_id, "model.safetensors"
    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        get_session().head(
            hub.ENDPOINT, timeout=10
        )  # fails at once without a network, where a download would retry long
        return Path(hf_hub_download(repository, file))
    except Exception as error:
        raise UsageError(
            f"backbone.weights: the pretrained weights of {name} cannot be reached ({type(error).__name__}: {error}). "
            f"On a machine with a network download {file} of {repository} from the Hugging Face hub, then pass "
            f"--weights PATH/{file}; or ask for --weights random"
        ) from error
