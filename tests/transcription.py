"""A second, literal transcription of SAGE's equations 1 to 8, sample by sample in plain Python, to test against.

It follows the text of the paper and shares no code with the package. Where the paper can be read in two ways the
arguments say which reading is meant.
"""

from __future__ import annotations

import math


def softmax(y: list[float], tau: float) -> list[float]:
    top = max(y)
    powers = [math.exp((v - top) / tau) for v in y]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def js(p: list[float], q: list[float]) -> float:  # equations 1 and 2
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return kl(p, m) / 2 + kl(q, m) / 2


def divergence(kind: str, p: list[float], q: list[float]) -> float:
    return {"js": js(p, q), "kl": kl(p, q), "jeffreys": kl(p, q) + kl(q, p)}[kind]


def cd(a: list[float], b: list[float]) -> float:
    dot = sum(u * v for u, v in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(u * u for u in a)) / math.sqrt(sum(v * v for v in b))


def sla(y: list[list[float]], tau: float, lam: float, scale: str, kind: str) -> float:  # equation 3
    p, kept, degraded, removed = (softmax(view, tau) for view in y)
    factor = {"2**tau": 2**tau, "tau**2": tau**2}[scale]
    return lam * factor * divergence(kind, p, kept) + (1 - lam) * factor * divergence(kind, degraded, removed)


def sce(z: list[list[float]], lam: float, mu: float) -> float:  # equations 4 to 6
    clean, kept, degraded, removed = z
    forward = max(cd(clean, kept) - cd(clean, removed) + mu, 0)
    backward = max(cd(degraded, removed) - cd(degraded, kept) + mu, 0)
    return lam * forward + (1 - lam) * backward


def xent(y: list[float], label: int) -> float:  # equation 7, with its minus sign
    return -math.log(softmax(y, 1.0)[label])


def sage(
    logits: list[list[list[float]]],
    embeddings: list[list[list[float]]],
    labels: list[int],
    alpha: float = 0.5,
    lambda_sla: float = 0.5,
    lambda_sce: float = 0.5,
    tau: float = 2.0,
    scale: str = "tau**2",
    kind: str = "js",
    margin: str | float = "sample",
) -> tuple[float, float, float, float]:
    """Return L_SAGE, L_CE, L_SLA and L_SCE of views x samples x values (equation 8), means over the batch."""
    n = len(labels)
    y = [[view[i] for view in logits] for i in range(n)]
    z = [[view[i] for view in embeddings] for i in range(n)]
    own = [cd(views[0], views[2]) for views in z]
    mu = own if margin == "sample" else [sum(own) / n] * n if margin == "batch" else [float(margin)] * n
    l_ce = sum(xent(y[i][0], labels[i]) for i in range(n)) / n
    l_sla = sum(sla(y[i], tau, lambda_sla, scale, kind) for i in range(n)) / n
    l_sce = sum(sce(z[i], lambda_sce, mu[i]) for i in range(n)) / n
    return alpha * l_ce + (1 - alpha) * (l_sla + l_sce), l_ce, l_sla, l_sce
