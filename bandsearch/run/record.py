"""A finished run as a record of the atlas."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from bandsearch.atlas import add_record, atlas_directory
from bandsearch.models.loading import fingerprint
from bandsearch.run.finished import Finished
from bandsearch.run.job import Job
from bandsearch.run.words import short_name
from bandsearch.rundir import Records, RunDirectory
from bandsearch.search.correlation import signals
from bandsearch.values.atlas import AtlasRecord, BandReading
from bandsearch.values.band import Band
from bandsearch.values.evaluation import Arm, Metric, Winner
from bandsearch.values.progress import Listener, Update
from bandsearch.values.trial import TrialResult, TrialStage


def leave_record(home: RunDirectory, job: Job, listen: Listener) -> None:
    """Add the run to the atlas. Where that cannot be written the run is complete all the same, and says so."""
    directory = atlas_directory(job.spec.atlas)
    try:
        add_record(directory, record_of(home, job))
    except OSError as error:
        sentence = f"The atlas {directory} cannot be written ({error.strerror or error}); this run is not in it."
        listen(Update(stage="report", message=sentence))


def record_of(home: RunDirectory, job: Job) -> AtlasRecord:
    """The run in `home` as a record, without any path of this machine. Raises RunDirectoryError if it is not done."""
    done = Finished.read(home)
    winner, facts = done.winner, done.environment.facts
    compared = winner.candidate != winner.baseline
    gain = done.evaluation.comparison(Arm.WINNER, Arm.FULL_DEPTH, Metric.LOSS) if compared else None
    results = Records(home.trials).results()
    return AtlasRecord(
        date=facts.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
        model=job.source.slug if job.source.is_local else job.source.location,
        slug=job.source.slug,
        fingerprint=fingerprint(job.source),
        layout=job.summary.layout,
        data=short_name(job.dataset.name),
        data_fingerprint=job.dataset.fingerprint,
        shape=job.dataset.shape,
        layer_scores=done.profile.layer_scores,
        rates=done.profile.rate_range.model_copy(update={"points": ()}),
        tried=tuple(readings(results)),
        signals=signals(results, winner.finalists, done.profile, done.plan.rungs),
        full_steps=winner.steps_trained or done.plan.full_steps,
        winner=as_trained(winner),
        gain=None if gain is None else gain.difference,
        versions={name: facts[name] for name in ("bandsearch", "torch", "transformers", "peft") if name in facts},
    )


def as_trained(winner: Winner) -> Winner:
    """With the rates of the final training throughout: one that diverged there is not to be recommended."""
    finalists = tuple(
        each.model_copy(update={"candidate": winner.as_trained(each.candidate)}) for each in winner.finalists
    )
    named = {"candidate": winner.as_trained(winner.candidate), "baseline": winner.as_trained(winner.baseline)}
    return winner.model_copy(update={**named, "finalists": finalists})


def readings(results: Iterable[TrialResult]) -> list[BandReading]:
    """The search's bands, each once: the lowest loss among those candidates on it that were trained the longest.

    The longest trained and best of them first; losses after different numbers of steps do not compare.
    """
    by_bands: dict[tuple[Band, ...], list[TrialResult]] = {}
    for result in results:
        if result.stage is TrialStage.SEARCH and result.points:
            by_bands.setdefault(result.candidate.bands, []).append(result)
    found = []
    for bands, there in by_bands.items():
        steps = max(result.steps for result in there)
        losses = [loss for result in there if (loss := result.loss_at(steps)) is not None]
        found.append(BandReading(bands=bands, candidates=len(there), steps=steps, loss=min(losses)))
    return sorted(found, key=lambda reading: (-reading.steps, reading.loss))
