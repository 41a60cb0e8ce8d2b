"""What a training step costs: SAGE against cross-entropy, and against SAGE written down literally from the paper.

    python benchmarks/step_cost.py [--backbone resnet18] [--size 224] [--batch 20] [--repeats 7] [--device cpu]

All steps are whole (forward, backward, optimiser) and taken in turn, so that a machine whose speed drifts slows all of
them; the ratios are medians over the repeats of a ratio within each. The literal step is four float32 passes of tensors
in PyTorch's default layout, torchvision's blur, and the losses through probabilities. The last row is what SAGE adds to
its four passes: making the views, and the loss terms with their backward pass.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lookhere.backbone import Backbone
from lookhere.batch import Batch
from lookhere.losses import sage_loss, saliency_contrastive_embedding, saliency_logit_alignment
from lookhere.methods import METHODS, Method
from lookhere.training.fit import resolve_device
from lookhere.views import saliency_views


def make_batch(size: int, count: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 3, size, size, generator=generator).to(device, memory_format=torch.channels_last)
    return Batch(
        image=image,
        label=torch.arange(count, device=device) % 2,
        saliency=torch.rand(count, 1, size, size, generator=generator).to(device),
        has_saliency=torch.ones(count, dtype=torch.bool, device=device),
        weight=torch.ones(count, device=device),
        index=torch.arange(count, device=device),
    )


def our_step(name: str, backbone: str, batch: Batch) -> Callable[[], None]:
    model = Backbone(timm.create_model(backbone, num_classes=2))
    method: Method = METHODS[name](model, METHODS[name].Options(name=name))
    method = method.to(batch.image.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(method.parameters(), 0.005, momentum=0.9, weight_decay=1e-6)

    def step() -> None:
        loss = method(batch)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def literal_step(backbone: str, batch: Batch) -> Callable[[], None]:
    model: Any = timm.create_model(backbone, num_classes=2).to(batch.image.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.005, momentum=0.9, weight_decay=1e-6)
    x, s, label = batch.image.contiguous(), batch.saliency, batch.label

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(a, b)

    def divergence(y: Tensor, other: Tensor) -> Tensor:
        p, q = F.softmax(y / 2, 1), F.softmax(other / 2, 1)
        m = (p + q) / 2
        return ((p * (p / m).log()).sum(1) / 2 + (q * (q / m).log()).sum(1) / 2).mean()

    def step() -> None:
        optimizer.zero_grad()
        blurred = tv.gaussian_blur(x, [7, 7], [10.0, 10.0])
        outputs = []
        for view in (x, s * x + (1 - s) * blurred, blurred, (1 - s) * x + s * blurred):
            z = model.forward_head(model.forward_features(view), pre_logits=True)
            outputs.append((model.get_classifier()(z), z))
        (y, z), (y_kept, z_kept), (y_blur, z_blur), (y_removed, z_removed) = outputs
        margin = distance(z, z_blur).detach()
        triplets = F.relu(distance(z, z_kept) - distance(z, z_removed) + margin).mean() / 2
        triplets = triplets + F.relu(distance(z_blur, z_removed) - distance(z_blur, z_kept) + margin).mean() / 2
        alignment = 4 * (divergence(y, y_kept) + divergence(y_blur, y_removed)) / 2
        loss = (F.cross_entropy(y, label) + alignment + triplets) / 2
        loss.backward()
        optimizer.step()

    return step


def overhead(batch: Batch, width: int) -> Callable[[], None]:
    """Return what SAGE does besides its four passes: views, and loss terms with their backward pass."""
    logits = [torch.randn(len(batch), 2, device=batch.image.device, requires_grad=True) for _ in range(4)]
    embeddings = [torch.randn(len(batch), width, device=batch.image.device, requires_grad=True) for _ in range(4)]

    def step() -> None:
        saliency_views(batch.image, batch.saliency)
        sla, sce = saliency_logit_alignment(*logits), saliency_contrastive_embedding(*embeddings)
        sage_loss(F.cross_entropy(logits[0], batch.label), sla, sce).backward()

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = resolve_device(a.device)
    batch = make_batch(a.size, a.batch, device)
    width: int = Backbone(timm.create_model(a.backbone, num_classes=2)).model.num_features
    steps = {name: our_step(name, a.backbone, batch) for name in METHODS}
    steps |= {"literal sage": literal_step(a.backbone, batch), "views and loss terms": overhead(batch, width)}
    for step in steps.values():  # warm-up, not counted
        seconds(step, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(a.repeats):
        for name, step in steps.items():
            times[name].append(seconds(step, device))

    def ratio(name: str, reference: str) -> float:
        return statistics.median(x / y for x, y in zip(times[name], times[reference], strict=True))

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{a.backbone}, {a.size} px, batch {a.batch}, {where}, torch {torch.__version__}, {a.repeats} repeats\n")
    print(f"{'step':22} {'median s':>9} {'÷ cross-entropy':>16} {'÷ literal sage':>15} {'÷ sage':>8}")
    for name, values in times.items():
        ratios = [ratio(name, reference) for reference in ("cross-entropy", "literal sage", "sage")]
        print(f"{name:22} {statistics.median(values):9.4f} {ratios[0]:16.3f} {ratios[1]:15.3f} {ratios[2]:8.3f}")
    print(json.dumps({"arguments": vars(a), "machine": platform.processor() or platform.machine(), "seconds": times}))


if __name__ == "__main__":
    main()
