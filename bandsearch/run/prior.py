"""What this search takes from earlier runs: asked of the atlas once, then kept with the run."""

from __future__ import annotations

from bandsearch.atlas import atlas_directory, read_records
from bandsearch.models.loading import fingerprint
from bandsearch.run.job import Job
from bandsearch.rundir import RunDirectory
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.prior import prior_from
from bandsearch.values.atlas import Prior
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Listener, Update
from bandsearch.values.spec import PriorSource


def prior_of(home: RunDirectory, job: Job, profile: SensitivityProfile, listen: Listener) -> Prior:
    """Nothing without `--prior`. Otherwise what `prior.json` says, which is written the first time: what the atlas
    learns while a run is interrupted does not change how the run goes on.
    """
    if job.spec.prior is PriorSource.NONE:
        return Prior()
    known = home.read(home.prior, Prior)
    if known is not None:
        return known

    def tell(message: str) -> None:
        listen(Update(stage="search", message=message))

    directory = atlas_directory(job.spec.atlas)
    prior = prior_from(
        read_records(directory, tell),
        CandidateCode(job.spec.space, job.summary.layout, profile.rate_range),
        fingerprint=fingerprint(job.source),
        layout=job.summary.layout,
        data_fingerprint=job.dataset.fingerprint,
        rate=profile.rate_range.best,
    )
    home.write(home.prior, prior)
    if not prior.suggestions:
        tell(f"The atlas {directory} has nothing for {job.source.slug} or its family.")
    for suggestion in prior.suggestions:
        tell(f"From the atlas, {suggestion.candidate}: {suggestion.reason}")
    return prior
