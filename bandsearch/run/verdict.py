"""The verdict in words. A win is claimed only where the test split shows it outside the noise."""

from __future__ import annotations

from bandsearch.run.forgetting import forgetting_words
from bandsearch.run.words import place_of
from bandsearch.values.evaluation import Choice, Comparison, Evaluation, Winner

BASELINE = "tuned full-depth LoRA"


def verdict(winner: Winner, evaluation: Evaluation) -> str:
    """A few sentences: what is handed over, how it compares with the baseline on the test split, what it forgets."""
    return f"{_on_the_task(winner, evaluation)} {forgetting_words(winner, evaluation)}".strip()


def _on_the_task(winner: Winner, evaluation: Evaluation) -> str:
    parameters = f"({winner.trainable_parameters:,} parameters)"
    if winner.choice is Choice.UNCOMPARED:
        return (
            f"Nothing could be compared in this budget: full-depth LoRA is handed over {parameters}. {winner.reason} "
            "`bandsearch plan` says what a larger budget buys."
        )
    if winner.choice is Choice.BASELINE:
        return f"Nothing to gain: {BASELINE} is handed over {parameters}. {winner.reason}"
    place = place_of(winner)
    band = place[0].upper() + place[1:]
    share = f"{winner.trainable_parameters / winner.baseline_parameters:.0%} of its parameters"
    comparison = evaluation.comparison("winner", "full_depth", "loss")
    if comparison is None:
        raise ValueError("an evaluation compares the winner with full depth")
    test = f"Test loss {evaluation.arm('winner').loss:.4f} against {evaluation.arm('full_depth').loss:.4f}, "
    test += f"difference {_interval(comparison)}."
    if comparison.difference.high < 0 and winner.choice is Choice.BEATS_BASELINE:
        return f"{band} beat {BASELINE} with {share}. {test}"
    if comparison.difference.high < 0:
        return (
            f"{band} are handed over: {_among_equals(winner)} on validation, with {share}. On the test "
            f"split it is ahead of {BASELINE}; as validation did not show that beyond noise, no win is claimed. {test}"
        )
    if comparison.difference.low > 0:
        return (
            f"{band} kept up with {BASELINE} on validation with {share}, but are behind it on the test split. {test} "
            "Use them for their size, or train full depth."
        )
    lead = (
        "led on validation, but not beyond noise on the test split"
        if (winner.choice is Choice.BEATS_BASELINE)
        else f"are {_among_equals(winner)}"
    )
    return f"No band beats {BASELINE} beyond noise. {band} {lead}, with {share}, and are handed over. {test}"


def _among_equals(winner: Winner) -> str:
    if winner.choice is Choice.CLOSEST_WITHIN_NOISE:
        return "the candidate within noise that stays closest to the base"
    return "the smallest candidate within noise"


def _interval(comparison: Comparison) -> str:
    difference = comparison.difference
    return f"{difference.mean:+.4f} ({difference.level:.0%} interval {difference.low:+.4f} to {difference.high:+.4f})"
