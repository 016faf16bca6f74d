"""
The verdict of a study in words, which follow from the joint intervals of its comparison and from nothing else.

An arm is called better only where its joint interval excludes 0. ECG-FM helps at a training size where one of its arms
is better than every arm without ECG-FM.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from .comparison import POWER, ArmResult, Comparison, Difference

ANSWERS = ("yes", "no", "it depends on the number of labels", "not shown")


@dataclass(frozen=True)
class Verdict:
    """
    The answer of a study.

    Args:
        answer (`str`): One of `ANSWERS` to: does ECG-FM help on these recordings?
        headline (`str`): The answer in a sentence or two, by how much and with how many labels.
        by_size (`tuple[str, ...]`): For each training size, the best arm with ECG-FM against those without.
        pairs (`tuple[str, ...]`): A sentence for each pair of arms at each training size.
        caveats (`tuple[str, ...]`): What the reader must know to believe it.
    """

    answer: str
    headline: str
    by_size: tuple[str, ...]
    pairs: tuple[str, ...]
    caveats: tuple[str, ...]


def verdict(comparison: Comparison, with_ecgfm: Collection[str]) -> Verdict:
    """
    Return the verdict of a study.

    Args:
        comparison ([`Comparison`])
        with_ecgfm: The arms that use ECG-FM's pretrained weights; all others are what they are compared with.
    """
    sizes = [_Size.of(comparison, size, with_ecgfm) for size in dict.fromkeys(arm.size for arm in comparison.arms)]
    compared = [size for size in sizes if size.with_ecgfm and size.without]
    helps = [size for size in compared if size.winner is not None]
    harms = [size for size in compared if size.loser_to is not None]
    if helps and harms:
        answer, headline = ANSWERS[2], " ".join(size.sentence for size in compared)
    elif helps:
        answer = ANSWERS[0]
        from_here = helps == compared[compared.index(helps[0]) :] and len(helps) > 1
        where = "with " + _list([f"{size.recordings:,.0f}" for size in helps]) + " labelled recordings"
        where = f"from {helps[0].recordings:,.0f} labelled recordings on" if from_here else where
        headline = f"Yes, ECG-FM helps on these recordings {where}. {helps[-1].sentence}"
    elif harms:
        answer, headline = ANSWERS[1], f"No, ECG-FM does not help on these recordings. {harms[-1].sentence}"
    elif compared:
        answer = ANSWERS[3]
        headline = f"It is not shown that ECG-FM helps on these recordings. {compared[-1].sentence}"
    else:
        answer = ANSWERS[3]
        headline = "The study does not compare an arm with ECG-FM and one without, so it does not answer the question."
    return Verdict(
        answer,
        headline,
        tuple(size.sentence for size in compared),
        tuple(f"{_with(comparison, one)}: {describe(one)}" for one in comparison.differences),
        _caveats(comparison),
    )


def describe(difference: Difference) -> str:
    """Return what a difference shows, as a sentence."""
    one, other, low, high = difference.first, difference.second, difference.joint_low, difference.joint_high
    if difference.own.low == difference.own.high:
        return f"{one} and {other} rank the recordings alike."
    if math.isnan(low):
        return f"no difference shown between {one} and {other}, because it has no interval: {difference.own.reason}."
    if difference.better == one:
        return f"{one} is better than {other} by {low:.3f} to {high:.3f} in macro AUROC."
    if difference.better == other:
        return f"{other} is better than {one} by {-high:.3f} to {-low:.3f} in macro AUROC."
    return (
        f"no difference shown between {one} and {other} ({low:+.3f} to {high:+.3f} in macro AUROC); a difference of "
        f"{difference.detectable:.3f} would have been shown with a probability of {POWER:.0%}."
    )


@dataclass(frozen=True)
class _Size:
    """One training size: its arms, best first, and its differences, the arm with ECG-FM first."""

    recordings: float
    with_ecgfm: list[ArmResult]
    without: list[ArmResult]
    differences: dict[tuple[str, str], Difference]

    @classmethod
    def of(cls, comparison: Comparison, size: float, with_ecgfm: Collection[str]) -> "_Size":
        arms = [arm for arm in comparison.arms if arm.size == size]
        arms.sort(key=lambda arm: -arm.macro["auroc"].value)
        differences = {(one.first, one.second): one for one in comparison.differences if one.size == size}
        return cls(
            max(arm.recordings for arm in arms),
            [arm for arm in arms if arm.arm in with_ecgfm],
            [arm for arm in arms if arm.arm not in with_ecgfm],
            differences,
        )

    def _between(self, one: str, other: str) -> Difference | None:
        return self.differences.get((one, other)) or self.differences.get((other, one))

    def _better(self, one: ArmResult, other: ArmResult) -> bool:
        found = self._between(one.arm, other.arm)
        return found is not None and found.better == one.arm

    @property
    def winner(self) -> ArmResult | None:
        """The best arm with ECG-FM that is better than every arm without."""
        return next((arm for arm in self.with_ecgfm if all(self._better(arm, other) for other in self.without)), None)

    @property
    def loser_to(self) -> ArmResult | None:
        """The best arm without ECG-FM that is better than every arm with it."""
        return next((arm for arm in self.without if all(self._better(arm, other) for other in self.with_ecgfm)), None)

    @property
    def sentence(self) -> str:
        """The arm with ECG-FM that matters here, against the arms without."""
        arm = self.winner or self.with_ecgfm[0]
        found = [self._between(arm.arm, other.arm) for other in self.without]
        shown = " ".join(describe(one) for one in found if one is not None)
        return f"With {self.recordings:,.0f} labelled recordings: {shown}"


def _with(comparison: Comparison, difference: Difference) -> str:
    found = [arm.recordings for arm in comparison.arms if arm.size == difference.size and arm.arm == difference.first]
    return f"With {found[0]:,.0f} labelled recordings"


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _caveats(comparison: Comparison) -> tuple[str, ...]:
    count = len(comparison.differences)
    levels = f"have a level of {comparison.level:.0%}"
    if count > 1:
        levels = f"of all {count} differences hold together with {comparison.level:.0%}; each one has a level of "
        levels += f"{comparison.joint_level:.1%}"
    return (
        f"The intervals {levels}. They cover {comparison.covers}.",
        "Macro AUROC of recordings of patients like these; it is not known for other hospitals or devices.",
        *comparison.notes,
    )
