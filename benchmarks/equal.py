"""A, equal math: the same candidates, rows, order, steps and evaluations in three arms, measured interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from bandsearch.values.candidate import Candidate
from bandsearch.values.value import Value
from benchmarks.costs import peak_flops
from benchmarks.job import Trained
from benchmarks.ours import OurTiming, run_ours
from benchmarks.processes import Timing, best_threads, pooled, run_naive, run_strong
from benchmarks.workload import Workload


class Round(NamedTuple):
    naive: Timing
    strong: Timing
    ours: OurTiming


class EqualMath(Value):
    """`a_naive_limit` is the ratio of an arm that does nothing but the products nobody can do without, at the device's
    peak. `naive_repeat_deviation` is that of two naive runs from each other, None on a CPU, where they are equal.

    Seconds are for the whole list of candidates, medians over rounds. Memory is the sum over the arm's processes.
    """

    a_naive: float
    a_strong: float
    a_naive_warm: float
    a_naive_limit: float | None
    max_loss_deviation: float
    naive_loss_deviation: float
    strong_loss_deviation: float
    naive_repeat_deviation: float | None
    trials: int
    rounds: int
    naive_measured: int
    strong_measured: int
    naive_seconds: float
    strong_seconds: float
    ours_seconds: float
    naive_start_seconds: float
    strong_start_seconds: float
    ours_start_seconds: float
    engines: int
    packing: int
    tokens_per_step: float
    useful_tokens_per_second: float
    peak_flops: float | None
    share_of_peak: float | None
    naive_peak_memory_bytes: int
    strong_peak_memory_bytes: int
    ours_peak_memory_bytes: int
    base_loss: float
    largest_last_loss: float
    smallest_change: float


def measure_rounds(workload: Workload) -> list[Round]:
    """Every round: naive, strong, ours, strong, naive, so that a drift of the machine meets all arms alike.

    The plain arms take other candidates in every round, the next ones of the list.
    """
    scale, rounds, threads = workload.scale, [], best_threads(workload)
    for number in range(scale.rounds):
        naive = _turn(workload, number, scale.naive_trials)
        strong = _turn(workload, number, scale.strong_trials)
        half, middle = (len(naive) + 1) // 2, (len(strong) + 1) // 2
        naive_timings = [run_naive(workload, naive[:half], threads)]
        strong_timings = [run_strong(workload, strong[:middle], threads)]
        ours = run_ours(workload, workload.candidates)
        if strong[middle:]:
            strong_timings.append(run_strong(workload, strong[middle:], threads))
        if naive[half:]:
            naive_timings.append(run_naive(workload, naive[half:], threads))
        rounds.append(Round(pooled(naive_timings), pooled(strong_timings), ours))
    return rounds


def _turn(workload: Workload, number: int, count: int) -> list[Candidate]:
    candidates = workload.candidates
    return [candidates[(number * count + index) % len(candidates)] for index in range(min(count, len(candidates)))]


def equal_math(workload: Workload, rounds: Sequence[Round]) -> EqualMath:
    """The ratios; raises AssertionError where an adapter did not change or a loss did not fall."""
    candidates = workload.candidates
    count = len(candidates)
    naive = [each.naive.seconds(workload, candidates, starts=count) for each in rounds]
    warm = [each.naive.seconds(workload, candidates, starts=0) for each in rounds]
    strong = [each.strong.seconds(workload, candidates, starts=1) for each in rounds]
    ours = [each.ours.total_seconds for each in rounds]
    check(rounds)
    volume = workload.volume(workload.proxy)
    rate = median(count * volume.trained_tokens / each.ours.warm_seconds for each in rounds)
    peak = peak_flops(workload.inventory, workload.summary.layout)
    least = sum(volume.least_flops(candidate) for candidate in candidates)
    all_ours = [trial for each in rounds for trial in each.ours.trials]
    naive_deviation = max(deviation(each.naive.trials, each.ours.trials) for each in rounds)
    strong_deviation = max(deviation(each.strong.trials, each.ours.trials) for each in rounds)
    return EqualMath(
        a_naive=median(theirs / own for theirs, own in zip(naive, ours, strict=True)),
        a_strong=median(theirs / own for theirs, own in zip(strong, ours, strict=True)),
        a_naive_warm=median(theirs / each.ours.warm_seconds for theirs, each in zip(warm, rounds, strict=True)),
        a_naive_limit=None if peak is None else median(naive) * peak / least,
        max_loss_deviation=max(naive_deviation, strong_deviation),
        naive_loss_deviation=naive_deviation,
        strong_loss_deviation=strong_deviation,
        naive_repeat_deviation=_repeated(workload, rounds[0].naive.trials[0]),
        trials=count,
        rounds=len(rounds),
        naive_measured=sum(len(each.naive.trials) for each in rounds),
        strong_measured=sum(len(each.strong.trials) for each in rounds),
        naive_seconds=median(naive),
        strong_seconds=median(strong),
        ours_seconds=median(ours),
        naive_start_seconds=median(each.naive.start_seconds for each in rounds),
        strong_start_seconds=median(each.strong.start_seconds for each in rounds),
        ours_start_seconds=median(each.ours.start_seconds for each in rounds),
        engines=rounds[0].ours.engines,
        packing=rounds[0].ours.packing,
        tokens_per_step=volume.trained_tokens / workload.scale.steps,
        useful_tokens_per_second=rate,
        peak_flops=peak,
        share_of_peak=None if peak is None else rate * volume.full_depth_flops_per_token / peak,
        naive_peak_memory_bytes=max(each.naive.peak_memory_bytes for each in rounds),
        strong_peak_memory_bytes=max(each.strong.peak_memory_bytes for each in rounds),
        ours_peak_memory_bytes=max(each.ours.peak_memory_bytes for each in rounds),
        base_loss=rounds[0].ours.base_loss,
        largest_last_loss=max(trial.validation_losses[-1] for trial in all_ours),
        smallest_change=min(trial.change for trial in all_ours),
    )


def _repeated(workload: Workload, trial: Trained) -> float | None:
    if workload.device == "cpu":
        return None
    return deviation(run_naive(workload, [trial.candidate]).trials, [trial])


def check(rounds: Sequence[Round]) -> None:
    """A speed-up that trains nothing is none: every adapter changed, and every loss is below the bare base's."""
    for each in rounds:
        for trial in (*each.naive.trials, *each.strong.trials, *each.ours.trials):
            if not trial.change > 0:
                raise AssertionError(f"The adapter of {trial.candidate} did not change.")
        for trial in each.ours.trials:
            if not trial.validation_losses[-1] < each.ours.base_loss:
                raise AssertionError(
                    f"{trial.candidate}: validation loss {trial.validation_losses[-1]:.4f}, "
                    f"not below the base's {each.ours.base_loss:.4f}."
                )


def deviation(theirs: Sequence[Trained], ours: Sequence[Trained]) -> float:
    """The largest difference of a step's training loss for the same candidate."""
    own = {trial.candidate.identity: trial.train_losses for trial in ours}
    return max(
        abs(one - other)
        for trial in theirs
        for one, other in zip(trial.train_losses, own[trial.candidate.identity], strict=True)
    )
