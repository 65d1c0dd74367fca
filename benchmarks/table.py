"""The tables: an outcome as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.ablations import Ablations
from benchmarks.equal import ROUNDS_LIKE, Breakdown, EqualMath, Rounding
from benchmarks.outcome import Measured, Outcome
from benchmarks.scaling import Curve
from benchmarks.screening import Screening
from benchmarks.spread import Spread

UNMEASURED = "*unmeasured*"


def page(outcome: Outcome, *, gpu_measured: bool) -> str:
    at = outcome.environment
    packages = ", ".join(f"{name} {number}" for name, number in at.packages.items())
    parts = [
        f"# Benchmarks: {outcome.study}",
        f"{at.date}, {at.processor}, {at.cores} cores, {at.memory_bytes / 2**30:.0f} GiB, "
        f"{', '.join(at.gpus) or 'no GPU'}; Python {at.python}, {packages}. Load before the start "
        f"{at.load_before:.2f}; {outcome.seconds / 60:.0f} minutes in all.",
        _equal(outcome.workloads),
        _screening([each for each in outcome.workloads if each.screening]),
    ]
    if outcome.ablations:
        parts.append(_ablations(outcome.ablations))
    if outcome.scaling:
        parts.append(_scaling(outcome.scaling))
    if not at.gpus:
        found = "see [cuda.md](cuda.md)" if gpu_measured else UNMEASURED
        parts.append(f"## On a GPU\n\nRandom weights of the sizes of Qwen2.5-7B, bf16: {found}.")
    return "\n\n".join(parts) + "\n"


def _equal(workloads: Sequence[Measured]) -> str:
    rows: list[tuple[str, Callable[[EqualMath], str]]] = [
        ("trials per hour ÷ naive", lambda e: _ratio(e.naive)),
        ("÷ naive, two processes side by side", lambda e: _ratio(e.naive_side_by_side)),
        ("trials per hour ÷ strong", lambda e: _ratio(e.strong)),
        ("÷ naive, starts of both left out", lambda e: _ratio(e.naive_warm, bold=False)),
        ("÷ naive, if ours had no starts", lambda e: f"{e.naive_without_starts:.2f}"),
        ("÷ naive, if besides only the least products ran, at peak", lambda e: _number(e.naive_limit, ".1f")),
        (
            "seconds of ours: starts; steps, evaluations, prefix states at peak; the rest",
            lambda e: UNMEASURED if e.breakdown is None else _parts(e.breakdown),
        ),
        (
            "peak in GFLOP/s: data sheet, or all cores' products measured",
            lambda e: UNMEASURED if e.peak_flops is None else f"{e.peak_flops / 1e9:.0f}",
        ),
        ("share of peak: least products, computed once warm", lambda e: _number(e.computed_share_of_peak, ".0%")),
        ("the same, with all that plain training would compute", lambda e: _number(e.equal_share_of_peak, ".0%")),
        ("candidates × rounds", lambda e: f"{e.trials} × {e.rounds}"),
        (
            "trials measured: naive, side by side, strong",
            lambda e: f"{e.naive_measured}, {e.side_by_side_measured}, {e.strong_measured}",
        ),
        (
            "the same work again, longest ÷ shortest: naive, strong, ours",
            lambda e: ", ".join(f"{spread.high:.2f}" for spread in e.steadiness.values()),
        ),
        *(
            [("**warning**: something else ran beside", lambda e: ", ".join(e.disturbed) or "nothing seen")]
            if any(each.equal.disturbed for each in workloads)
            else []
        ),
        (
            "seconds for all candidates: naive, strong, ours",
            lambda e: f"{e.naive_seconds:.0f}, {e.strong_seconds:.0f}, {e.ours_seconds:.0f}",
        ),
        (
            "seconds to start a process: naive, strong, ours",
            lambda e: f"{e.naive_start_seconds:.1f}, {e.strong_start_seconds:.1f}, {e.ours_start_seconds:.1f}",
        ),
        ("engines × K", lambda e: f"{e.engines} × {e.packing}"),
        ("tokens per step", lambda e: f"{e.tokens_per_step:.0f}"),
        ("useful tokens per second, ours", lambda e: f"{e.useful_tokens_per_second:.0f}"),
        (
            "peak memory in MiB: naive, strong, ours",
            lambda e: ", ".join(
                f"{size / 2**20:.0f}"
                for size in (e.naive_peak_memory_bytes, e.strong_peak_memory_bytes, e.ours_peak_memory_bytes)
            ),
        ),
        (
            "largest difference of a step's loss: naive, strong",
            lambda e: f"{e.naive_loss_deviation:.1e}, {e.strong_loss_deviation:.1e}",
        ),
        ("the same, of two naive runs", lambda e: _number(e.naive_repeat_deviation, ".1e")),
        ("from naive in float64, the candidate furthest off: naive, ours", lambda e: _rounding(e.rounding)),
        (
            "validation loss: bare base, worst trained",
            lambda e: f"{e.base_loss:.3f}, {e.largest_last_loss:.3f}",
        ),
    ]
    head = ["", *(each.scale.name for each in workloads)]
    body = [[name, *(show(each.equal) for each in workloads)] for name, show in rows]
    return (
        "## A: equal math\n\nThe same candidates, rows, order, steps and evaluations. Naive is a fresh process per "
        "trial (Trainer and PEFT), strong a warm loop that trains one trial at a time; both were measured on the "
        "stated number of trials, and the others' time follows from their operations at the median of the seconds per "
        "operation. In brackets: by the fastest and by the slowest trial measured. Ours runs every candidate from a "
        "cold start to the end of its processes. It sorts its list by the start of the bands first, which a list that "
        "is known beforehand allows; a search cannot (B). Where ours is further from naive in float64 than "
        f"rounding explains, after any step more than {ROUNDS_LIKE:.0f} times as far as naive is by then, it is marked."
        "\n\n" + _table(head, body)
    )


def _ratio(spread: Spread | None, *, bold: bool = True, digits: int = 2) -> str:
    if spread is None:
        return UNMEASURED
    usual = f"{spread.median:.{digits}f}"
    return f"{f'**{usual}**' if bold else usual} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def _number(value: float | None, form: str) -> str:
    return UNMEASURED if value is None else format(value, form)


def _parts(of: Breakdown) -> str:
    return f"{of.starts:.0f}; {of.steps:.0f}, {of.evaluations:.0f}, {of.prefixes:.0f}; {of.rest:.0f}"


def _rounding(of: Rounding | None) -> str:
    return UNMEASURED if of is None else f"{of.naive:.1e}, {of.ours:.1e}{'' if of.is_all else ' **missed**'}"


def _screening(workloads: Sequence[Measured]) -> str:
    if not workloads:
        return "## B: search level\n\n" + UNMEASURED
    rows: list[tuple[str, Callable[[Screening], str]]] = [
        ("candidates screened per device-hour ÷ naive", lambda s: _ratio(s.naive, digits=1)),
        ("candidates", lambda s: f"{s.trials} ({', '.join(f'{n} {state}' for state, n in s.states.items())})"),
        ("mean steps", lambda s: f"{s.mean_steps:.1f}"),
        (
            "seconds: naive, ours, of these the probe",
            lambda s: f"{s.naive_seconds:.0f}, {s.ours_seconds:.0f}, {s.probe_seconds:.0f}",
        ),
        (
            "test loss after retraining: ours, naive's, bare base",
            lambda s: f"{s.winner_test_loss:.4f}, {s.naive_winner_test_loss:.4f}, {s.base_test_loss:.4f}",
        ),
        (
            "ours less naive's, 95 % interval over seeds and test questions",
            lambda s: f"{s.difference.low:+.4f} to {s.difference.high:+.4f}{'' if s.is_no_worse else ' **missed**'}",
        ),
        ("winner", lambda s: s.winner),
        ("naive's winner", lambda s: s.naive_winner),
    ]
    head = ["", *(each.scale.name for each in workloads)]
    body = [[name, *(show(each.screening) for each in workloads if each.screening)] for name, show in rows]
    return (
        "## B: search level\n\nProbe and search as a run has them (Ray Tune, successive halving), against training "
        "every candidate to the last rung in the naive way, at A's seconds per operation. Naive's winner is the best "
        "of the frozen candidates.\n\n" + _table(head, body)
    )


def _ablations(found: Ablations) -> str:
    levers = _table(
        ["off", "seconds", "× slower", "measured", "K", "peak memory, MiB"],
        [
            [
                each.off,
                f"{each.seconds:.1f}",
                f"{each.slowdown.median:.2f}" if each.readings == 1 else _ratio(each.slowdown, bold=False),
                f"{each.readings}",
                f"{each.packing}",
                f"{each.peak_memory_bytes / 2**20:.0f}",
            ]
            for each in found.levers
        ],
    )
    added = _table(
        ["on as well", "seconds", "× faster", "measured", "start longer by, s", "paid for after steps"],
        [
            [
                each.on,
                f"{each.seconds:.1f}",
                _ratio(each.speedup, bold=False),
                f"{each.readings}",
                f"{each.start_seconds:.1f}",
                "never" if each.pays_after is None else f"{each.pays_after:.0f}",
            ]
            for each in found.added
        ],
    )
    starts = _table(
        ["start layer", *(f"{each.at:.0f}" for each in found.by_start)],
        [["trials per hour ÷ strong, warm", *(f"{each.ratio:.2f}" for each in found.by_start)]],
    )
    tokens = _table(
        ["tokens per step", *(f"{each.at:.0f}" for each in found.by_tokens_per_step)],
        [["trials per hour ÷ strong, warm", *(f"{each.ratio:.2f}" for each in found.by_tokens_per_step)]],
    )
    pays = "not within the trials measured" if found.cache_pays_after is None else f"{found.cache_pays_after} trial(s)"
    variants = "".join(
        f"\n- naive {name}: {ratio:.2f} of the trials per hour of naive as measured in A"
        for name, ratio in found.naive_variants.items()
    )
    return (
        f"## Ablations\n\nLevers: {found.candidates} candidates, {found.epochs:.1f} epochs, engines warm; medians, and "
        f"in brackets from the fastest to the slowest.\n\n{levers}\n\n{added}\n\n{starts}\n\n{tokens}\n\n"
        f"- the prefix cache has paid for itself after: {pays}{variants}"
    )


def _scaling(curves: Iterable[Curve]) -> str:
    body = [
        [
            curve.axis,
            ", ".join(f"{value:g}" for value in curve.values),
            ", ".join(f"{rate:.0f}" for rate in curve.trials_per_hour),
            f"{curve.fit.exponent:+.2f}",
            f"{curve.fit.worst:.0%}",
        ]
        for curve in curves
    ]
    return "## Scaling\n\n" + _table(["axis", "values", "trials per hour", "exponent", "largest misfit"], body)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
