"""The verdict in words. A win is claimed only where the test split shows it outside the noise."""

from __future__ import annotations

from bandsearch.run.forgetting import forgetting_words
from bandsearch.run.words import percent, place_of
from bandsearch.values.evaluation import Arm, Choice, Comparison, Evaluation, Metric, Winner

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
        return f"No gain was shown: {BASELINE} is handed over {parameters}. {winner.reason}"
    lora = f"LoRA on {place_of(winner)}"
    share = f"{percent(winner.trainable_parameters / winner.baseline_parameters)} of full depth's parameters"
    comparison = evaluation.comparison(Arm.WINNER, Arm.FULL_DEPTH, Metric.LOSS)
    if comparison is None:
        raise ValueError("an evaluation compares the winner with full depth")
    ours, theirs = evaluation.arm(Arm.WINNER).loss, evaluation.arm(Arm.FULL_DEPTH).loss
    test = f"Test loss {ours:.4f} against {theirs:.4f}, difference {_interval(comparison)}."
    won_validation = winner.choice is Choice.BEATS_BASELINE
    if comparison.difference.high < 0 and won_validation:
        return f"{lora} beats {BASELINE} with {share}. {test}"
    if comparison.difference.high < 0:
        return (
            f"{lora} is handed over, with {share}: {_among_equals(winner)} on validation. On the test split it is "
            f"ahead of {BASELINE}; as validation did not show that beyond noise, no win is claimed. {test}"
        )
    if winner.is_behind(evaluation):
        return (
            f"{lora} kept up with {BASELINE} on validation with {share}, but is behind it on the test split. {test} "
            "Use it for its size, or train full depth."
        )
    why = "it led on validation, but not beyond noise on the test split" if won_validation else _among_equals(winner)
    if comparison.difference.low > 0:
        test += f" It is behind by less than the {percent(winner.tolerance)} that were said not to matter."
    return f"No candidate beats {BASELINE} beyond noise. {lora} is handed over, with {share}: {why}. {test}"


def _among_equals(winner: Winner) -> str:
    if winner.choice is Choice.CLOSEST_WITHIN_NOISE:
        return "the candidate within noise that stays closest to the base"
    return "the smallest candidate within noise"


def _interval(comparison: Comparison) -> str:
    difference = comparison.difference
    return f"{difference.mean:+.4f} ({difference.level:.0%} interval {difference.low:+.4f} to {difference.high:+.4f})"
