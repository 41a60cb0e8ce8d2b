"""The table of tests: p-values beside the smallest that so few seeds allow."""

from __future__ import annotations

from collections.abc import Sequence

from lookhere.bench.groups import Group
from lookhere.bench.resamples import Resamples
from lookhere.bench.table import Cell, Column, Row, Table
from lookhere.bench.values import baseline_of, subset_title, trial_values
from lookhere.evaluation.comparison import holm, sign_flip_p, signed_rank_p
from lookhere.evaluation.folds import paired_trials
from lookhere.evaluation.statistics import smallest_rank_p

MEANING = {
    "Sign-flip p": "two-sided p of the mean paired difference when every seed's difference could as well have the "
    "other sign; exact for up to 20 seeds",
    "Holm": "the sign-flip p adjusted for all comparisons of this table",
    "Smallest p": "what the sign-flip test gives for so many seeds when all differences have one sign, and what Holm "
    "then makes of it; no result could be lower",
    "Wilcoxon p": "two-sided p of the signed-rank test over seeds, exact",
    "DeLong p": "of each pair of trainings on the same images: other test images, but not other trainings; "
    "it takes images of one subject or patient for independent",
}


def significance_table(
    groups: Sequence[Group], split: str, subset: str, resamples: Resamples, place: str = ""
) -> Table | None:
    """Test the AUROC of every group against its baseline's on one subset; None where there is nothing to compare."""
    found = []
    for group in groups:
        baseline = baseline_of(group, groups)
        if baseline is None:
            continue
        own, others = (trial_values(one, split, subset, "auroc") for one in (group, baseline))
        paired = paired_trials(own, others, group.test_ratio)
        if paired.n:
            found.append((group, baseline, paired))
    if not found:
        return None
    p = [sign_flip_p(paired.values) for _, _, paired in found]
    rows = []
    for (group, baseline, paired), one, adjusted in zip(found, p, holm(p), strict=True):
        smallest = smallest_rank_p(paired.n)
        cells = [
            Cell(str(paired.n), mean=paired.n),
            _p(one),
            _p(adjusted),
            Cell(f"{p_text(smallest)} (Holm {p_text(min(1.0, smallest * len(found)))})", mean=smallest),
            _p(signed_rank_p(paired.values)),
        ]
        each = [test.p for test in resamples.delong(group, baseline, split, subset).values() if test.p == test.p]
        shown = f"{sum(value < 0.05 for value in each)} of {len(each)} below 0.05" if each else "undefined"
        listed = tuple(map(p_text, each))
        cells.append(Cell(listed[0] if len(each) == 1 else shown, listed, mean=min(each, default=None)))
        rows.append(Row(group.label, group.seeds, baseline.label, tuple(cells), group.folds))
    titles = ["Seeds in common", *MEANING]
    against = sorted({baseline.label for _, baseline, _ in found})
    folds = any(group.folds for group, _, _ in found)
    paired_by = "seed and fold, averaged over the folds" if folds else "seed"
    notes = (
        f"Against {' or '.join(against)}, paired by {paired_by}; {len(found)} "
        f"comparison{'s' if len(found) > 1 else ''}.",
        "A p above 0.05 does not show that two methods are alike: look at the interval of the difference.",
    )
    title = f"Tests of the difference in AUROC on {place or split}, {subset_title(subset)}"
    return Table(title, tuple(map(Column, titles)), tuple(rows), notes, MEANING)


def p_text(p: float) -> str:
    """Return a p-value with up to four decimals."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}".rstrip("0").rstrip(".")


def _p(p: float) -> Cell:
    return Cell(p_text(p), mean=p)
