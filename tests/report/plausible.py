"""Plausible facts of a finished run, made up from a seed, to look at and to test the report with."""

import math
import random
from statistics import fmean

from costs import costs_of

from bandsearch.run.report import ReportFacts
from bandsearch.values.band import Band
from bandsearch.values.budget import Budget
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import (
    ArmScores,
    Choice,
    Comparison,
    Evaluation,
    ExampleScore,
    Finalist,
    Interval,
    Sample,
    Winner,
)
from bandsearch.values.plan import Plan, StagePlan
from bandsearch.values.profile import (
    BandProposal,
    LayerViews,
    ModuleSensitivity,
    RatePoint,
    RateRange,
    SensitivityProfile,
)
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec, RunSpec
from bandsearch.values.trial import Point, TrialResult, TrialState

RUNGS = (30, 90, 270)


def plausible_facts(
    seed: int = 0,
    layers: int = 10,
    trials: int = 60,
    gain: float = -0.02,
    noise: float = 0.008,
    model: str = "demo",
    data: str = "demo:word_problems",
    text: str = "A box holds 7 pens. Two boxes and 3 more?",
) -> ReportFacts:
    """`gain` is the winner's test loss minus the full-depth one; its interval is `gain` plus and minus `noise`."""
    dice = random.Random(seed)
    true = [math.exp(-(((layer / layers - 0.55) / 0.25) ** 2)) + 0.1 for layer in range(layers)]

    def candidate(band: Band, rank: int = 8) -> Candidate:
        rate = 10 ** dice.uniform(-3.5, -1.7)
        return Candidate(bands=(band,), rank=rank, alpha=32, targets=("all",), learning_rate=rate)

    def size(chosen: Candidate) -> int:
        return len(chosen.layers) * chosen.rank * 2_700

    def loss(chosen: Candidate, steps: int) -> float:
        covered = sum(true[layer] for layer in chosen.layers) / sum(true)
        speed = 1 + 1.5 * len(chosen.layers) / layers
        rate = (math.log10(chosen.learning_rate) + 2.2) ** 2 * 0.05
        fit = (1 - covered) * 0.5 + 1.2 * math.exp(-steps * speed / 60)
        return 0.18 + fit + rate + dice.gauss(0, 0.01)

    best_band = Band.between(0.35, 0.85, layers)
    baselines = {
        Role.FULL_DEPTH: Band.full(layers),
        Role.MID_BLOCK: Band.between(0.2, 0.8, layers),
        Role.LAST_K: Band.last(max(1, layers // 2), layers),
        Role.RANDOM_BAND: Band.between(0.05, 0.5, layers),
    }
    results = []
    for number in range(trials):
        role = list(baselines)[number % 4] if number < 8 else Role.SEARCHED
        start = dice.randrange(layers)
        band = Band(start=start, stop=dice.randint(start + 1, layers))
        chosen = candidate(baselines.get(role, band), dice.choice((4, 8, 16)) if number >= 8 else 8)
        reached = dice.choices((1, 2, 3), (5, 3, 2))[0] if number >= 4 else 3
        points = tuple(Point(steps=s, loss=loss(chosen, s), seconds=s / 20) for s in RUNGS[:reached])
        state = TrialState.COMPLETE if reached == 3 else TrialState.PRUNED
        if number in (17, 41):
            state, points = TrialState.DIVERGED, ()
        results.append(
            TrialResult(
                number=number,
                candidate=chosen,
                role=role,
                seed=seed,
                state=state,
                points=points,
                trainable_parameters=size(chosen),
                proposed_by="baseline" if role.is_baseline else "sampler",
            )
        )
    winner = candidate(best_band)
    chosen = [(winner, Role.SEARCHED), *((candidate(band), role) for role, band in baselines.items())]
    complete = [trial for trial in results if trial.state is TrialState.COMPLETE and trial.role is Role.SEARCHED]
    chosen += [(trial.candidate, trial.role) for trial in complete[:5]]
    confirmed = [tuple(loss(one, 400) for _ in range(3)) for one, _ in chosen]
    finalists = tuple(
        Finalist(
            candidate=one,
            role=role,
            trainable_parameters=size(one),
            steps=400,
            loss=fmean(losses),
            losses=losses,
        )
        for (one, role), losses in zip(chosen, confirmed, strict=True)
    )
    for finalist in finalists:
        for place, value in enumerate(finalist.losses):
            confirmed = TrialResult(
                number=len(results),
                candidate=finalist.candidate,
                role=finalist.role,
                seed=place,
                state=TrialState.COMPLETE,
                points=(Point(steps=400, loss=value, seconds=20.0),),
                trainable_parameters=finalist.trainable_parameters,
                proposed_by="confirm",
                stage="confirm",
            )
            results.append(confirmed)
    baseline = finalists[1]
    scores = {
        "base": [dice.gauss(2.4, 0.4) for _ in range(200)],
        "full_depth": [max(0.01, dice.gauss(0.21, 0.08)) for _ in range(200)],
    }
    scores["winner"] = [max(0.001, value + gain + dice.gauss(0, 0.03)) for value in scores["full_depth"]]
    right = {"base": 0.0, "full_depth": 0.88, "winner": 0.92}
    arms = tuple(
        ArmScores(
            arm=arm,
            examples=tuple(
                ExampleScore(
                    loss=value,
                    supervised_tokens=20,
                    correct=dice.random() < right[arm] if place < 100 else None,
                    generated=f"{text} The answer is {dice.randint(1, 60)}." if place < 100 else None,
                )
                for place, value in enumerate(values)
            ),
            trainable_parameters={"base": 0, "full_depth": size(baseline.candidate), "winner": size(winner)}[arm],
            tasks={"bandsearch_words/exact_match": right[arm]},
        )
        for arm, values in scores.items()
    )
    comparisons = (
        _compared("winner", "full_depth", "loss", gain, noise),
        _compared("winner", "full_depth", "exact_match", 0.04, 0.055),
        _compared("winner", "base", "loss", -2.2, 0.1),
        _compared("full_depth", "base", "loss", -2.18, 0.1),
    )
    total = sum(true)
    return ReportFacts(
        spec=RunSpec(
            model=ModelSpec(name=model),
            data=DataSpec(name=data),
            space=SearchSpace(name="default"),
            budget=Budget.parse("10min"),
            seed=seed,
        ),
        environment={"python": "3.11.9", "torch": "2.13.0", "cores": "2", "started": "2026-01-02T03:04:05+00:00"},
        profile=SensitivityProfile(
            model=model,
            layer_count=layers,
            modules=tuple(
                ModuleSensitivity(layer=layer, module="self_attn.q_proj", raw=1.0, normalised=value)
                for layer, value in enumerate(true)
            ),
            views=tuple(
                LayerViews(
                    layer=layer,
                    entropy_base=2 + layer / layers + dice.gauss(0, 0.05),
                    entropy_tuned=2.1 + 0.8 * layer / layers + dice.gauss(0, 0.05),
                    effective_rank_base=20,
                    effective_rank_tuned=22,
                    cka=1 - 0.3 * value * layer / layers,
                    cosine=0.9,
                    curvature_base=0.4,
                    curvature_tuned=0.5,
                    relative_change=0.02 * value,
                )
                for layer, value in enumerate(true)
            ),
            layer_scores=tuple(value / total for value in true),
            rate_range=RateRange(
                low=1e-3,
                best=1e-2,
                high=4e-2,
                points=tuple(
                    RatePoint(
                        learning_rate=10 ** (-4 + 0.3 * n),
                        loss=None if n > 9 else 2.0 - 0.15 * n + 0.02 * max(0, n - 6) ** 3,
                    )
                    for n in range(11)
                ),
            ),
            proposals=(BandProposal(band=best_band, score=1.0, reason="most sensitivity per layer"),),
            seconds=14.2,
        ),
        trials=tuple(results),
        plan=Plan(
            engines=1,
            packing=1,
            costs=costs_of(
                0.05,
                seconds_per_validation=0.8,
                seconds_per_test_loss=0.01,
                seconds_per_generation=0.05,
                load_seconds=9.0,
                peak_memory_bytes=10**9,
            ),
            wall_seconds=600,
            batch_size=16,
            full_steps=600,
            rungs=RUNGS,
            trial_limit=None,
            expected_trials=55,
            confirm_steps=400,
            confirm_seeds=3,
            finalists=6,
            validation_examples=128,
            test_examples=200,
            generated_examples=100,
            stages=tuple(
                StagePlan(name=name, seconds=seconds, detail="")
                for name, seconds in (
                    ("load", 9.0),
                    ("probe", 18.0),
                    ("search", 300.0),
                    ("confirm", 160.0),
                    ("retrain", 70.0),
                    ("evaluate", 33.0),
                    ("slack", 10.0),
                )
            ),
            disk_bytes=10**8,
            memory_bytes=10**9,
        ),
        winner=Winner(
            candidate=winner,
            role=Role.SEARCHED,
            trainable_parameters=size(winner),
            choice=Choice.BEATS_BASELINE,
            reason="Mean validation loss 0.2213 against 0.2391, standard error of the difference 0.0062.",
            baseline=baseline.candidate,
            baseline_parameters=size(baseline.candidate),
            finalists=finalists,
        ),
        evaluation=Evaluation(
            arms=arms,
            comparisons=comparisons,
            samples=tuple(Sample(prompt=f"{text} ({n})", answer=str(10 + n)) for n in range(8)),
        ),
        verdict=f"On 200 test examples the winner's loss differs from full depth by {gain:+.4f}.",
        ledger_by_stage={
            "load": 8.7,
            "plan": 6.1,
            "probe": 17.2,
            "search": 296.4,
            "confirm": 158.9,
            "retrain": 66.1,
            "export": 0.4,
            "evaluate": 31.0,
            "close": 0.9,
        },
        devices=1,
        serve_command="vllm serve org/model --enable-lora --max-lora-rank 8 --lora-modules bandsearch=adapter",
        data_notes=("2000 rows read as prompt/completion", "3 rows truncated to 1024 tokens"),
    )


def _compared(arm: str, reference: str, metric: str, mean: float, noise: float) -> Comparison:
    interval = Interval(mean=mean, low=mean - noise, high=mean + noise)
    return Comparison(arm=arm, reference=reference, metric=metric, difference=interval)
