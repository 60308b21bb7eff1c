"""Each pair of groups: whether they can be compared, and by how much they differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hvdtrain.analysis.compare.facts import VAL, validated
from hvdtrain.analysis.compare.figures import Figure
from hvdtrain.analysis.compare.groups import Group
from hvdtrain.analysis.compare.significance import ALPHA, TTest, holm, paired, welch

HOW = (
    "Two-sided t tests of the difference of means over seeds: Welch's test, which lets each group have a "
    "variance of its own; where both groups have the same seeds, the paired test of the differences seed by "
    "seed. p is corrected for the pairs of one figure by Holm's method; intervals are of 95 %, each for "
    "itself. A seed that ran several times counts once, with the mean of its runs."
)
"""What the tests are, for page and terminal."""
ONE_RUN = "one run says nothing about chance"


@dataclass(frozen=True)
class Pair:
    """Two groups and one figure: a test, or the reason why there is none."""

    figure: Figure
    a: Group
    b: Group
    counts: tuple[int, int]
    """Seeds of each."""
    test: TTest | None = None
    p: float | None = None
    """Corrected for the number of pairs."""
    reason: str = ""

    @property
    def verdict(self) -> str:
        """What the test says in words."""
        if self.test is None or self.p is None:
            return self.reason
        if self.p >= ALPHA:
            return "no difference shown"
        lower, higher = (self.a, self.b) if self.test.difference < 0 else (self.b, self.a)
        if not self.figure.better:
            return f"{lower.letter} is lower"
        return f"{(lower if self.figure.better == 'low' else higher).letter} is better"

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV; intervals and p only where there is a test."""
        about = {"figure": self.figure.key, "a": self.a.letter, "b": self.b.letter}
        found = {**about, "seeds_a": self.counts[0], "seeds_b": self.counts[1]}
        if self.test is None:
            return {**found, "verdict": self.reason}
        test = {("p_uncorrected" if k == "p" else k): v for k, v in vars(self.test).items()}
        return {**found, **test, "p": self.p, "verdict": self.verdict}


def pairs_of(groups: Sequence[Group], figures: Sequence[Figure]) -> list[Pair]:
    """All pairs of groups for each figure, with p corrected for those of this figure."""
    against = list(itertools.combinations(groups, 2))
    faults = [incomparable(a, b) for a, b in against]
    found = []
    for figure in figures:
        pairs = [_pair(figure, a, b, fault) for (a, b), fault in zip(against, faults, strict=True)]
        tested = [pair for pair in pairs if pair.test]
        corrected = iter(holm([pair.test.p for pair in tested if pair.test]))
        found += [replace(pair, p=next(corrected)) if pair.test else pair for pair in pairs]
    return found


def _pair(figure: Figure, a: Group, b: Group, fault: str) -> Pair:
    of_a, of_b = a.by_seed(figure), b.by_seed(figure)
    bare = Pair(figure, a, b, (len(of_a), len(of_b)))
    if fault:
        return replace(bare, reason=f"not comparable: {fault}")
    if not of_a or not of_b:
        lacking = next(group for group, of in ((a, of_a), (b, of_b)) if not of)
        what = "no finished run" if figure.whole and not lacking.counted else "no value"
        return replace(bare, reason=f"{what} in {lacking.letter}")
    if min(len(of_a), len(of_b)) < 2:
        return replace(bare, reason=ONE_RUN)
    if of_a.keys() == of_b.keys():
        test = paired(list(of_a.values()), [of_b[seed] for seed in of_a])
    else:
        test = welch(list(of_a.values()), list(of_b.values()))
    return replace(bare, test=test, reason="" if test else "no spread over seeds, so no test")


def incomparable(a: Group, b: Group) -> str:
    """Why the results of two groups are not those of one task; empty if nothing speaks against it.

    Other training images may be what is asked about: they are a difference like any other.
    """
    runs = [*a.runs, *b.runs]
    held_out = {run.facts.held_out for run in runs}
    if len(held_out) > 1:
        return "one holds out a share of its training images, the other has images of its own"
    if held_out == {True}:
        shared = {run.seed for run in a.runs} & {run.seed for run in b.runs}
        for seed in shared:
            prints = {run.about.fingerprints.get("val") for run in runs if run.seed == seed}
            if len(prints) > 1:
                return f"other {VAL} with seed {seed}"
    else:
        of_a, of_b = ({*group.values(VAL)} for group in (a, b))
        if len(of_a | of_b) > 1:
            texts = " against ".join(", ".join(sorted(values)) for values in (of_a, of_b))
            return f"{VAL}: {texts}"
    sizes = [{n for run in group.runs if (n := validated(run.record))} for group in (a, b)]
    if all(sizes) and sizes[0] != sizes[1]:
        texts = " against ".join(", ".join(f"{n:,}" for n in sorted(size)) for size in sizes)
        return f"{texts} validation images"
    return ""
