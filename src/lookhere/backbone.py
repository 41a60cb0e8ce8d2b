"""A classifier seen from the inside: logits, embedding and feature map, from timm or from any ``nn.Module``.

timm gives all of its models one interface, so no hook and no table of layer names is needed for them. Any other module
is read through a tap: the input of its last linear layer, or the output of a layer named by the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import get_session
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lookhere.errors import UsageError, nearest
from lookhere.options import Options

BatchNorm = Literal["per_view", "joint", "clean"]


class Features(NamedTuple):
    """What a classifier makes of ``b`` images."""

    logits: Tensor
    """``b k``."""
    embedding: Tensor
    """``b d``: what the last linear layer sees."""
    feature_map: Tensor | None
    """``b c h w``: what the global pooling sees; none for a module read through a tap."""


class BackboneOptions(Options):
    """Which network, and from where it starts."""

    name: str = "resnet50"
    """A timm model, with a weights tag if wanted: resnet50, resnet50.tv_in1k, swin_tiny_patch4_window7_224, …"""
    weights: str = Field("pretrained", min_length=1)
    """``pretrained`` (timm's, from its hub or local cache), ``random``, or the path of a .safetensors file."""


class Backbone(nn.Module):
    """A timm classifier.

    Args:
        model: a timm model whose head is a pooling and one linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
        self.mean: Sequence[float] = config.get("mean", (0.485, 0.456, 0.406))
        self.std: Sequence[float] = config.get("std", (0.229, 0.224, 0.225))
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Features:
        """Return the features of ``b 3 h w`` images."""
        inside = self.model.forward_features(images)
        embedding = self.model.forward_head(inside, pre_logits=True)
        logits = self.model.get_classifier()(embedding)
        return Features(logits, embedding, inside.permute(0, 3, 1, 2) if self.channels_last else inside)

    def class_activation_map(self, feature_map: Tensor) -> Tensor:
        """Return W . f for every class, ``b c h w`` -> ``b k h w``.

        With average pooling its spatial mean plus the bias equals the logits, on every backbone of the paper.

        Raises:
            UsageError: the classifier is not one linear layer.
        """
        classifier = self.model.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise UsageError(
                f"class activation maps need one linear layer as classifier, got {type(classifier).__name__}"
            )
        return torch.einsum("kc,bchw->bkhw", classifier.weight, feature_map)


class Tapped(nn.Module):
    """Any classifier whose forward pass returns logits, read through a hook that lives for one pass only.

    Args:
        model: maps images to ``b k`` logits.
        tap: name of the module whose output is the embedding (``b d``, or ``b c h w`` and ``b n d``, which are
            averaged); by default the input of the last linear layer, which must give the logits.

    Raises:
        UsageError: no such module, no linear layer, or (at the first pass) one that does not give the logits.
    """

    def __init__(self, model: nn.Module, tap: str | None = None) -> None:
        super().__init__()
        self.model = model
        modules = dict(model.named_modules())
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        if tap is None and not linear:
            raise UsageError(
                f"{type(model).__name__} has no linear layer to read embeddings from; name a layer with tap=…"
            )
        if tap is not None and tap not in modules:
            raise UsageError(f"tap: {type(model).__name__} has no module '{tap}'{nearest(tap, modules)}")
        self.reads_input = tap is None
        self.tap = linear[-1] if tap is None else tap

    def forward(self, images: Tensor) -> Features:
        """Return the features of ``b c h w`` images, without a feature map."""
        seen: list[tuple[Tensor, Tensor]] = []
        hook = self.model.get_submodule(self.tap).register_forward_hook(
            lambda _, given, out: seen.append((given[0], out))
        )
        try:
            logits = self.model(images)
        finally:
            hook.remove()
        logits = getattr(logits, "logits", logits)  # some models return them beside other things
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UsageError(f"{type(self.model).__name__} must return logits (b k), got {_describe(logits)}")
        if not seen:
            raise UsageError(
                f"'{self.tap}' took no part in the forward pass of {type(self.model).__name__}; name another tap"
            )
        given, out = seen[-1]
        if not self.reads_input:
            return Features(logits, _pool(out), None)
        if out.data_ptr() != logits.data_ptr():
            raise UsageError(
                f"the last linear layer '{self.tap}' does not give the output of {type(self.model).__name__}; "
                "return logits (no softmax), or name the embedding's layer with tap=…"
            )
        return Features(logits, given, None)


def wrap(model: nn.Module, tap: str | None = None) -> Backbone | Tapped:
    """Return a classifier as a backbone: by timm's interface if it has it and no tap is named, else through a tap.

    A compiled model is tapped too: timm's interface would go round the compiled forward pass.
    """
    compiled = hasattr(model, "_orig_mod")
    return Backbone(model) if _has_interface(model) and tap is None and not compiled else Tapped(model, tap)


def create_backbone(options: BackboneOptions, classes: int, size: int) -> Backbone:
    """Return a timm classifier with a fresh head.

    Args:
        options: name and weights.
        classes: number of classes.
        size: side of the images in pixels; needed by networks that are built for one size.

    Raises:
        UsageError: unknown name, or weights that cannot be had. Random weights are used only where asked for.
    """
    file = resolve_weights(options)
    arguments: dict[str, Any] = {"num_classes": classes}
    config = timm.models.get_pretrained_cfg(options.name)
    if config and config.fixed_input_size:
        arguments["img_size"] = size
    if file is None:
        return _checked(timm.create_model(options.name, pretrained=False, **arguments), options.name)
    overlay = {"file": str(file)}
    try:
        model = timm.create_model(options.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
        _check_complete(model, file)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"backbone.weights: {file} does not fit {options.name}: {reason} …") from error
    return _checked(model, options.name)


def resolve_weights(options: BackboneOptions) -> Path | None:
    """Return the file of a backbone's initial weights, fetched if need be, or None for random ones.

    Raises:
        UsageError: unknown name, or weights that cannot be had.
    """
    if not timm.is_model(options.name.split(".")[0]):
        raise UsageError(
            f"backbone.name: timm has no model '{options.name}'{nearest(options.name, timm.list_models())}"
        )
    if options.weights == "random":
        return None
    return _hub_file(options.name) if options.weights == "pretrained" else _weights_file(Path(options.weights))


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of every batch norm alone: each pass is normalised by its own batch."""
    tracking = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def forward_views(backbone: nn.Module, views: Sequence[Tensor], batch_norm: BatchNorm) -> list[Features]:
    """Pass several views (``b_i c h w`` each) through a backbone, the first of them the clean one.

    Args:
        backbone: a ``Backbone`` or ``Tapped``.
        views: may differ in number of images.
        batch_norm: ``per_view``: a pass for each view, normalised by its own statistics, which it adds to the running
            ones (the paper's words); ``joint``: one pass over all; ``clean``: a pass for each, of which only the first
            adds to the running statistics, so that evaluation sees those of clean images.
    """
    if batch_norm == "joint":
        counts = [len(view) for view in views]
        parts = [None if part is None else part.split(counts) for part in backbone(torch.cat(list(views)))]
        return [Features(*(None if part is None else part[i] for part in parts)) for i in range(len(views))]  # type: ignore[arg-type]
    if batch_norm == "per_view":
        return [backbone(view) for view in views]
    clean = backbone(views[0])
    with frozen_statistics(backbone):
        return [clean, *(backbone(view) for view in views[1:])]


def _has_interface(model: nn.Module) -> bool:
    """Does the model have timm's interface and one linear layer as classifier, which a few of timm's own lack?"""
    names = ("forward_features", "forward_head", "get_classifier")
    return all(hasattr(model, name) for name in names) and isinstance(model.get_classifier(), nn.Linear)  # type: ignore[operator]


def _checked(model: nn.Module, name: str) -> Backbone:
    if not _has_interface(model):
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


def _pool(out: Tensor) -> Tensor:
    return out.flatten(2).mean(-1) if out.ndim == 4 else out.mean(1) if out.ndim == 3 else out


def _describe(value: object) -> str:
    return f"a tensor of shape {(*value.shape,)}" if isinstance(value, Tensor) else type(value).__name__
