"""A, equal math: the same candidates, rows, order, steps and evaluations in all arms, measured interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from statistics import median
from typing import NamedTuple

from bandsearch.values.candidate import Candidate
from bandsearch.values.value import Value
from benchmarks.costs import peak_flops
from benchmarks.job import Trained
from benchmarks.ours import OurTiming, run_ours
from benchmarks.processes import Timing, best_threads, pooled, run_naive, run_strong
from benchmarks.spread import Spread, repeats
from benchmarks.workload import Workload

# Naive processes side by side, which share the cores.
SIDE_BY_SIDE = 2
# Where ours is so many times as far from float64 as naive, after any step, more than rounding is at work: oneDNN's
# products, which round twice as much as MKL's, came to 14 times. And what is too little to be looked at.
ROUNDS_LIKE, LEAST = 50.0, 1e-5


class Round(NamedTuple):
    naive: Timing
    beside: Timing | None
    strong: Timing
    ours: OurTiming


class Breakdown(Value):
    """Where the seconds of our arm go. Steps, evaluations and prefix states (each computed once) are what their least
    products take at the device's peak; `rest` is what remains of the measured time."""

    starts: float
    steps: float
    evaluations: float
    prefixes: float
    rest: float

    @property
    def products(self) -> float:
        return self.steps + self.evaluations + self.prefixes


class Rounding(Value):
    """How far the losses of a training are from those of the same one in float64, at most: of naive, and of ours.

    Rounding is all of both where ours is at no step further away than naive by then, but for what two ways to round
    make of it. A fault shows in the first steps, before rounding is amplified: at high rates it is a thousandfold.
    Transformers' norms and loss compute in fp32 there too.
    """

    naive: float
    ours: float
    is_all: bool

    @classmethod
    def of(cls, exact: Sequence[float], naive: Sequence[float], ours: Sequence[float]) -> Rounding:
        theirs, own = ([abs(a - b) for a, b in zip(losses, exact, strict=True)] for losses in (naive, ours))
        so_far = zip(accumulate(own, max), accumulate(theirs, max), strict=True)
        return cls(naive=max(theirs), ours=max(own), is_all=all(o <= LEAST + ROUNDS_LIKE * n for o, n in so_far))


class EqualMath(Value):
    """Ratios are of seconds for the whole list of candidates, over every trial measured of the plain arm.

    `naive_side_by_side` is against two naive processes at a time, each with half of the cores; None on a GPU.
    `rounding` is of the candidate that is furthest from ours in the first round; None on a GPU, where float64 would not
    fit, and where `naive_repeat_deviation` is that of two naive runs of it: on a CPU they are equal to the last bit.

    `steadiness` is by arm what the same work took when it was measured again, by its shortest time. Seconds are
    medians. Memory is the sum over the arm's processes.
    """

    naive: Spread
    naive_side_by_side: Spread | None
    strong: Spread
    naive_warm: Spread
    steadiness: dict[str, Spread]
    breakdown: Breakdown | None
    max_loss_deviation: float
    naive_loss_deviation: float
    strong_loss_deviation: float
    naive_repeat_deviation: float | None
    rounding: Rounding | None
    trials: int
    rounds: int
    naive_measured: int
    side_by_side_measured: int
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
    equal_share_of_peak: float | None
    computed_share_of_peak: float | None
    naive_peak_memory_bytes: int
    strong_peak_memory_bytes: int
    ours_peak_memory_bytes: int
    base_loss: float
    largest_last_loss: float
    smallest_change: float

    @property
    def disturbed(self) -> tuple[str, ...]:
        """The arms whose repeated measurements differ too much to be believed."""
        return tuple(arm for arm, spread in self.steadiness.items() if spread.is_disturbed)

    @property
    def naive_without_starts(self) -> float:
        """The ratio if our processes were there at once, and naive's not."""
        return self.naive_seconds / (self.ours_seconds - self.ours_start_seconds)

    @property
    def naive_limit(self) -> float | None:
        """The ratio of an arm that starts at once and does nothing but the products nobody can do without, at the
        device's peak."""
        return None if self.breakdown is None else self.naive_seconds / self.breakdown.products


def measure_rounds(workload: Workload) -> list[Round]:
    """Every round: naive, strong, ours, strong, naive, so that a drift of the machine meets all arms alike.

    The plain arms take other candidates in every round, the next ones of the list, and end with their first once more.
    """
    scale, rounds, threads = workload.scale, [], best_threads(workload)
    shared = workload.device == "cpu" and workload.inventory.cores >= SIDE_BY_SIDE
    for number in range(scale.rounds):
        naive = _turn(workload, number, scale.naive_trials)
        strong = _turn(workload, number, scale.strong_trials)
        half, middle = (len(naive) + 1) // 2, (len(strong) + 1) // 2
        naive_before = run_naive(workload, naive[:half], threads)
        beside = run_naive(workload, _pair(workload, naive), side_by_side=SIDE_BY_SIDE) if shared else None
        strong_before = run_strong(workload, strong[:middle], threads)
        ours = run_ours(workload, workload.candidates, watched=True)
        strong_after = run_strong(workload, [*strong[middle:], strong[0]], threads)
        naive_after = run_naive(workload, [*naive[half:], naive[0]], threads)
        rounds.append(Round(pooled([naive_before, naive_after]), beside, pooled([strong_before, strong_after]), ours))
    return rounds


def _turn(workload: Workload, number: int, count: int) -> list[Candidate]:
    candidates = workload.candidates
    return [candidates[(number * count + index) % len(candidates)] for index in range(min(count, len(candidates)))]


def _pair(workload: Workload, naive: Sequence[Candidate]) -> list[Candidate]:
    """At least as many as there are processes, and with `naive`'s first, to compare."""
    others = [candidate for candidate in workload.candidates if candidate not in naive]
    return [*naive, *others[: max(0, SIDE_BY_SIDE - len(naive))]]


def equal_math(workload: Workload, rounds: Sequence[Round]) -> EqualMath:
    """The ratios; raises AssertionError where an adapter did not change or a loss did not fall."""
    candidates = workload.candidates
    count = len(candidates)
    check(rounds)
    volume = workload.volume(workload.proxy)
    naive, strong = pooled([each.naive for each in rounds]), pooled([each.strong for each in rounds])
    besides = [each.beside for each in rounds if each.beside is not None]
    totals, warm = [each.ours.total_seconds for each in rounds], [each.ours.warm_seconds for each in rounds]
    rate = median(count * volume.trained_tokens / seconds for seconds in warm)
    peak = peak_flops(workload.inventory, workload.summary.layout)
    breakdown = None if peak is None else _breakdown(workload, [each.ours for each in rounds], peak)
    all_ours = [trial for each in rounds for trial in each.ours.trials]
    naive_deviation = max(deviation(each.naive.trials, each.ours.trials) for each in rounds)
    strong_deviation = max(deviation(each.strong.trials, each.ours.trials) for each in rounds)

    furthest = max(rounds[0].naive.trials, key=lambda trial: deviation([trial], rounds[0].ours.trials))

    def ratio(arms: Sequence[Timing], ours: Sequence[float], starts: int) -> Spread:
        theirs = [arm.seconds(workload, candidates, starts=starts) for arm in arms]
        return Spread(
            median=median(each.median / own for each, own in zip(theirs, ours, strict=True)),
            low=min(each.low / own for each, own in zip(theirs, ours, strict=True)),
            high=max(each.high / own for each, own in zip(theirs, ours, strict=True)),
        )

    return EqualMath(
        naive=ratio([each.naive for each in rounds], totals, count),
        naive_side_by_side=ratio(besides, totals, count) if besides else None,
        strong=ratio([each.strong for each in rounds], totals, 1),
        naive_warm=ratio([each.naive for each in rounds], warm, 0),
        steadiness={
            "naive": repeats(naive.trials),
            "strong": repeats(strong.trials),
            "ours": _our_steadiness([each.ours for each in rounds]),
        },
        breakdown=breakdown,
        max_loss_deviation=max(naive_deviation, strong_deviation),
        naive_loss_deviation=naive_deviation,
        strong_loss_deviation=strong_deviation,
        naive_repeat_deviation=_repeated(workload, furthest),
        rounding=_rounding(workload, furthest, rounds[0].ours.trials),
        trials=count,
        rounds=len(rounds),
        naive_measured=len(naive.trials),
        side_by_side_measured=sum(len(each.trials) for each in besides),
        strong_measured=len(strong.trials),
        naive_seconds=naive.seconds(workload, candidates, starts=count).median,
        strong_seconds=strong.seconds(workload, candidates, starts=1).median,
        ours_seconds=median(totals),
        naive_start_seconds=naive.start_seconds,
        strong_start_seconds=strong.start_seconds,
        ours_start_seconds=median(each.ours.start_seconds for each in rounds),
        engines=rounds[0].ours.engines,
        packing=rounds[0].ours.packing,
        tokens_per_step=volume.trained_tokens / workload.scale.steps,
        useful_tokens_per_second=rate,
        peak_flops=peak,
        equal_share_of_peak=None if peak is None else rate * volume.full_depth_flops_per_token / peak,
        computed_share_of_peak=None if breakdown is None else breakdown.products / median(warm),
        naive_peak_memory_bytes=naive.peak_memory_bytes,
        strong_peak_memory_bytes=strong.peak_memory_bytes,
        ours_peak_memory_bytes=max(each.ours.peak_memory_bytes for each in rounds),
        base_loss=rounds[0].ours.base_loss,
        largest_last_loss=max(trial.validation_losses[-1] for trial in all_ours),
        smallest_change=min(trial.change for trial in all_ours),
    )


def _breakdown(workload: Workload, ours: Sequence[OurTiming], peak: float) -> Breakdown:
    candidates, volume = workload.candidates, workload.volume(workload.proxy)
    total = median(each.total_seconds for each in ours)
    starts = median(each.start_seconds for each in ours)
    steps = sum(map(volume.least_step_flops, candidates)) / peak
    evaluations = sum(map(volume.least_reading_flops, candidates)) / peak
    prefixes = volume.prefix_flops(candidates) / peak
    return Breakdown(
        starts=starts,
        steps=steps,
        evaluations=evaluations,
        prefixes=prefixes,
        rest=total - starts - steps - evaluations - prefixes,
    )


def _our_steadiness(ours: Sequence[OurTiming]) -> Spread:
    """Of the steps that were timed before and after the trials, and of whole rounds."""
    readings = [seconds for each in ours for seconds in each.watched]
    totals = [each.total_seconds for each in ours]
    return Spread.of([each / min(some) for some in (readings, totals) for each in some])


def _repeated(workload: Workload, trial: Trained) -> float | None:
    """How far another naive run of the same candidate is from `trial`."""
    if workload.device == "cpu":
        return None
    return deviation(run_naive(workload, [trial.candidate]).trials, [trial])


def _rounding(workload: Workload, naive: Trained, ours: Sequence[Trained]) -> Rounding | None:
    if workload.device != "cpu" or workload.scale.dtype != "float32":
        return None
    (exact,) = run_naive(workload, [naive.candidate], changes={"dtype": "float64"}).trials
    (own,) = (trial for trial in ours if trial.candidate.identity == naive.candidate.identity)
    return Rounding.of(exact.train_losses, naive.train_losses, own.train_losses)


def check(rounds: Sequence[Round]) -> None:
    """A speed-up that trains nothing is none: every adapter changed, and every loss is below the bare base's."""
    for each in rounds:
        beside = each.beside.trials if each.beside is not None else ()
        for trial in (*each.naive.trials, *beside, *each.strong.trials, *each.ours.trials):
            if not trial.change > 0:
                raise AssertionError(f"The adapter of {trial.candidate} did not change.")
        for trial in each.ours.trials:
            if not trial.validation_losses[-1] < each.ours.base_loss:
                raise AssertionError(
                    f"{trial.candidate}: validation loss {trial.validation_losses[-1]:.4f}, "
                    f"not below the base's {each.ours.base_loss:.4f}."
                )


def deviation(theirs: Sequence[Trained], ours: Sequence[Trained]) -> float:
    """The largest difference of a step's training loss for the same candidate, over those that both trained."""
    own = {trial.candidate.identity: trial.train_losses for trial in ours}
    return max(
        abs(one - other)
        for trial in theirs
        if trial.candidate.identity in own
        for one, other in zip(trial.train_losses, own[trial.candidate.identity], strict=True)
    )
