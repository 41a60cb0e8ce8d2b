"""What a training step of each method costs against cross-entropy, and SAGE against SAGE written down literally.

    python benchmarks/step_cost.py                                        # SAGE and its literal form, resnet18
    python benchmarks/step_cost.py --backbones resnet50 --precision bfloat16   # … SAGE as mixed precision trains it
    python benchmarks/step_cost.py --cheaper                              # SAGE with fewer or smaller views
    python benchmarks/step_cost.py --methods all --backbones resnet50,densenet121   # a table of methods
    python benchmarks/step_cost.py --methods all --backbones paper --write          # … which `lookhere methods` shows

All steps are whole (forward, backward, optimiser) and taken in turn, so that a machine whose speed drifts slows all of
them; the ratios are medians over the repeats of a ratio within each. A method of two stages counts both, by their
epochs in the protocol. A network of its own is set against cross-entropy on the backbone named first.

The literal step is four float32 passes of tensors in PyTorch's default layout, torchvision's blur, and the losses
through probabilities, whatever the precision of the others. It is taken in a process of its own, whose memory the C
library treats as it does by default; with `--without-literal` a machine needs memory for one network's step only. The
last row is what SAGE adds to its four passes: making the views, and the loss terms with their backward pass.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import machine
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.losses import sage_loss, saliency_contrastive_embedding, saliency_logit_alignment
from lookhere.methods import COSTS, METHODS, Method, Stage, create_method
from lookhere.progress import Track
from lookhere.training.config import TrainingOptions
from lookhere.training.devices import resolve_device
from lookhere.training.folder import write_json, write_text
from lookhere.views import saliency_views
from lookhere.weights import BackboneOptions, create_backbone

PAPER = ["resnet50", "densenet121", "tf_efficientnet_b7", "swin_tiny_patch4_window7_224"]
EPOCHS = TrainingOptions().epochs
PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
CHEAPER: dict[str, dict[str, Any]] = {
    "guided_share 0.5": {"guided_share": 0.5},
    "guided_every 2": {"guided_every": 2},
    "views.scale 0.5": {"views": {"scale": 0.5}},
    "both halves": {"guided_share": 0.5, "views": {"scale": 0.5}},
}
"""Options of SAGE that make a step cheaper; the last are the first and the third."""
LEAST = 3
"""Repeats that are taken however long they last."""
WARM = 3
"""Repeats that are taken first and not counted: in these the heap grows to what steps need."""
Steps = dict[str, list[tuple[Callable[[], None], float]]]
Times = dict[str, list[float]]


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


def our_steps(
    name: str, backbone: str, batch: Batch, precision: str = "float32", **options: Any
) -> list[tuple[Callable[[], None], float]]:
    """Return a step of each stage of a method, with the stage's epochs over those of cross-entropy.

    A method whose steps differ in turn has a step of each kind, with its share.

    Raises:
        UsageError: the method refuses the backbone.
    """
    size = batch.image.shape[-1]
    model = create_backbone(BackboneOptions(name=backbone, weights="random"), 2, size)
    method = create_method(METHODS[name].Options(name=name, **options), model)
    method = method.to(batch.image.device).to(memory_format=torch.channels_last)
    steps = []
    for stage in method.stages():
        method.begin(stage)
        needs = {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
        share = stage.overrides.get("epochs", EPOCHS) / EPOCHS
        turns = options.get("guided_every", 1)
        for turn in range(turns):
            steps.append((_step(method, stage, needs, replace(batch, step=turn), precision), share / turns))
    return steps


def _step(method: Method, stage: Stage, needs: set[int], batch: Batch, precision: str) -> Callable[[], None]:
    trained = [parameter for parameter in method.parameters() if id(parameter) in needs]
    optimizer = torch.optim.SGD(trained, 0.005, momentum=0.9, weight_decay=1e-6)

    def step() -> None:
        if method.stage is not stage:
            method.begin(stage)
            method.train()
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
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


class Elsewhere:
    """The literal step in a process of its own, which ends with this one."""

    def __init__(self, backbone: str, batch: Batch) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        size, count = batch.image.shape[-1], len(batch)
        arguments = (other, backbone, size, count, str(batch.image.device), torch.get_num_threads())
        self.process = context.Process(target=_take_literal_steps, args=arguments, daemon=True)
        self.process.start()
        other.close()

    def __call__(self) -> None:
        """Take a step and wait for its end.

        Raises:
            RuntimeError: the process has ended.
        """
        try:
            self.connection.send(None)
            self.connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(
                "the literal step's process has ended; with too little memory: --without-literal"
            ) from None

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()


def _take_literal_steps(
    connection: Connection, backbone: str, size: int, count: int, device: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    batch = make_batch(size, count, torch.device(device))
    step = literal_step(backbone, batch)
    with suppress(EOFError):
        while True:
            connection.recv()
            seconds(step, batch.image.device)
            connection.send(None)


def overhead(batch: Batch, width: int) -> Callable[[], None]:
    """Return what SAGE does besides its four passes: views, and loss terms with their backward pass."""
    logits = [torch.randn(len(batch), 2, device=batch.image.device, requires_grad=True) for _ in range(4)]
    embeddings = [torch.randn(len(batch), width, device=batch.image.device, requires_grad=True) for _ in range(4)]

    def step() -> None:
        saliency_views(batch.image, batch.saliency)
        sla, sce = saliency_logit_alignment(*logits), saliency_contrastive_embedding(*embeddings)
        sage_loss(F.cross_entropy(logits[0], batch.label), sla, sce).backward()

    return step


def seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def paired(times: dict[str, list[float]], name: str, reference: str) -> float:
    return statistics.median(x / y for x, y in zip(times[name], times[reference], strict=True))


def measure(steps: Steps, repeats: int, device: torch.device, budget: float = float("inf")) -> Times:
    """Return the seconds of each step, weighted over its stages, in every repeat; `WARM` first ones are not counted.

    Args:
        steps: by name, the step of each stage and its share.
        repeats: how many, if they take no more than ``budget`` seconds; fewer then, but at least ``LEAST``.
        device: what the steps run on.
        budget: see ``repeats``.
    """
    for _ in range(WARM):
        first = sum(seconds(step, device) for stages in steps.values() for step, _ in stages)
    repeats = min(repeats, max(LEAST, int(budget / first))) if budget < float("inf") else repeats
    times: Times = {name: [] for name in steps}
    with Track("measuring", len(steps) * repeats) as track:
        for _ in range(repeats):
            for name, stages in steps.items():
                times[name].append(sum(share * seconds(step, device) for step, share in stages))
                track.advance(note=name)
    return times


def compare(
    backbone: str,
    batch: Batch,
    repeats: int,
    precision: str = "float32",
    budget: float = float("inf"),
    literal: bool = True,
) -> tuple[Times, dict[str, float]]:
    """Return the seconds of cross-entropy's, SAGE's and its literal form's step, and the ratios that matter."""
    network: Any = timm.create_model(backbone, num_classes=2)
    steps: Steps = {name: our_steps(name, backbone, batch, precision) for name in ("cross-entropy", "sage")}
    with closing(Elsewhere(backbone, batch)) if literal else nullcontext() as elsewhere:
        if elsewhere:
            steps["literal sage"] = [(elsewhere, 1.0)]
        steps["views and loss terms"] = [(overhead(batch, network.num_features), 1.0)]
        times = measure(steps, repeats, batch.image.device, budget)
    ratios = {
        "sage_to_cross_entropy": paired(times, "sage", "cross-entropy"),
        "overhead": paired(times, "views and loss terms", "sage"),
    }
    if literal:
        ratios["sage_to_literal"] = paired(times, "sage", "literal sage")
    return times, ratios


def compare_cheaper(
    backbone: str, batch: Batch, repeats: int, precision: str = "float32", budget: float = float("inf")
) -> dict[str, float]:
    """Return the cost of SAGE and of its cheaper forms relative to cross-entropy."""
    steps = {name: our_steps(name, backbone, batch, precision) for name in ("cross-entropy", "sage")}
    steps |= {title: our_steps("sage", backbone, batch, precision, **options) for title, options in CHEAPER.items()}
    times = measure(steps, repeats, batch.image.device, budget)
    return {name: paired(times, name, "cross-entropy") for name in list(steps)[1:]}


def section(backbone: str, size: int, batch: int, precision: str) -> str:
    """Return the name under which a comparison is kept."""
    return f"step {backbone}, {size} px, batch {batch}, {precision}"


def costs(
    methods: Sequence[str], backbones: Sequence[str], batch: Batch, repeats: int, precision: str = "float32"
) -> dict[str, dict[str, float]]:
    """Return the cost of each method on each backbone, relative to cross-entropy on it; refused pairs are left out.

    Each method is timed in turn with cross-entropy and with no other, so that two networks are in memory and not all.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in methods}
    for number, backbone in enumerate(backbones):
        for name in methods:
            network = METHODS[name].network
            if network is None or number == 0:
                with suppress(UsageError):
                    steps = {"cross-entropy": our_steps("cross-entropy", backbone, batch, precision)}
                    steps |= {name: our_steps(name, network or backbone, batch, precision)}
                    times = measure(steps, repeats, batch.image.device)
                    found[name][network or backbone] = round(paired(times, name, "cross-entropy"), 2)
        print(backbone, {name: found[name].get(backbone) for name in methods}, flush=True)
    return found


def write_costs(about: dict[str, Any], found: dict[str, dict[str, float]]) -> None:
    """Write the costs where `lookhere methods` and docs/methods.md show them."""
    write_json(COSTS, {**about, "costs": found})
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- costs -->")
    write_text(PAGE, f"{before}<!-- costs -->\n{cost_table(found)}\n{rest[rest.index('<!-- /costs -->') :]}")


def cost_table(found: dict[str, dict[str, float]]) -> str:
    """Return the table of methods in docs/methods.md: one row a method, one column of costs a backbone."""
    networks = list(found["cross-entropy"])
    rows = [
        ["method", "paper", "guidance acts on", "maps at test", *networks],
        ["---", "---", "---", "---", *["---:"] * len(networks)],
    ]
    for name, method in METHODS.items():
        own = next(iter(found.get(name, {}).items()), None) if method.network else None
        costs = [f"{found[name][net]:.2f}" if net in found.get(name, {}) else "–" for net in networks]
        if own:
            costs[0] = f"{own[1]:.2f} ({own[0]})"
        rows.append([f"[{name}](methods/{name}.md)", method.paper, method.guides, method.maps_at_test, *costs])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--methods", default="sage", help="names with commas between them, or all")
    parser.add_argument("--backbones", default="resnet18", help="names with commas between them, or paper")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help=f"take fewer repeats if they last longer, but {LEAST} at least",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of all but literal SAGE"
    )
    parser.add_argument(
        "--write", action="store_true", help="write them where `lookhere methods` and docs/methods.md show them"
    )
    parser.add_argument("--without-literal", action="store_true", help="leave SAGE written down literally out")
    parser.add_argument("--cheaper", action="store_true", help="SAGE with fewer or smaller views, against whole SAGE")
    machine.add_save(parser)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = resolve_device(a.device)
    batch = make_batch(a.size, a.batch, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    shown = f"{where}, torch {torch.__version__}"
    about = {"size": a.size, "batch": a.batch, "precision": a.precision}
    print(f"{a.size} px, batch {a.batch}, {a.precision}, {shown}\n")
    backbones = PAPER if a.backbones == "paper" else a.backbones.split(",")
    if a.cheaper:
        for backbone in backbones:
            ratios = compare_cheaper(backbone, batch, a.repeats, a.precision, a.seconds)
            print(f"{backbone}, over cross-entropy: {', '.join(f'{n} {r:.2f}' for n, r in ratios.items())}", flush=True)
            if a.save:
                content = {"backbone": backbone, **about, "ratios": ratios}
                machine.save(f"cheaper {backbone}, {a.size} px, batch {a.batch}, {a.precision}", content, a.device)
        return
    if a.methods != "sage":
        methods = list(METHODS) if a.methods == "all" else a.methods.split(",")
        found = costs(methods, backbones, batch, a.repeats, a.precision)
        print(json.dumps(found, indent=1))
        about |= {"repeats": a.repeats, "epochs": EPOCHS}
        if a.write:
            write_costs({"machine": shown, **about}, found)
        if a.save:
            machine.save(f"costs, {a.size} px, batch {a.batch}, {a.precision}", {**about, "costs": found}, a.device)
        return
    for backbone in backbones:
        times, ratios = compare(backbone, batch, a.repeats, a.precision, a.seconds, not a.without_literal)
        references = [name for name in ("cross-entropy", "literal sage", "sage") if name in times]
        print(f"{backbone:22} {'median s':>9}" + "".join(f"{'÷ ' + name:>17}" for name in references))
        for name, values in times.items():
            over = "".join(f"{paired(times, name, reference):17.3f}" for reference in references)
            print(f"{name:22} {statistics.median(values):9.4f}{over}")
        if a.save:
            content = {"backbone": backbone, **about, "seconds": times, "ratios": ratios}
            machine.save(section(backbone, a.size, a.batch, a.precision), content, a.device)
        print()


if __name__ == "__main__":
    main()
