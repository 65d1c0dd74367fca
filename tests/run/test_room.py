"""A model whose weights alone are more than the memory is refused before they are fetched."""

from __future__ import annotations

import pytest

from bandsearch.engine.devices import DeviceInventory
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import summarize
from bandsearch.run import job
from bandsearch.values.errors import ModelError
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec, RunSpec

DEMO = summarize(resolve(ModelSpec(name="demo")))


def spec(dtype: str) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name="demo", dtype=dtype),
        data=DataSpec(name="demo:swap"),
        space=SearchSpace(name="quick"),
        trials=3,
    )


@pytest.mark.parametrize(
    ("dtype", "room", "remedy"),
    [
        ("auto", DEMO.bytes_by_dtype["float32"] - 1, "--dtype bf16"),
        ("auto", DEMO.bytes_by_dtype["nf4"], "--dtype nf4"),
        ("bf16", DEMO.bytes_by_dtype["bfloat16"] - 1, "--dtype nf4"),
        ("nf4", DEMO.bytes_by_dtype["nf4"] - 1, "smaller model"),
    ],
)
@pytest.mark.parametrize("gpus", [(), ("a", "b")])
def test_weights_that_cannot_fit_are_not_fetched(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], dtype: str, room: int, remedy: str
) -> None:
    own, gpu = (10**15, room) if gpus else (room, 0)
    inventory = DeviceInventory(gpus=gpus, cores=2, memory_bytes=own, gpu_memory_bytes=gpu)
    monkeypatch.setattr(job, "devices", lambda: inventory)
    monkeypatch.setattr(job, "fetch_weights", lambda _: pytest.fail("they were fetched"))
    if gpus and dtype == "auto":
        dtype = "fp32"
    with pytest.raises(ModelError, match=f"The weights of .* GB of memory.*{remedy}"):
        job.prepare_job(spec(dtype))


def test_what_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    room = DEMO.bytes_by_dtype["bfloat16"]
    monkeypatch.setattr(job, "devices", lambda: DeviceInventory(gpus=(), cores=2, memory_bytes=room))
    assert job.prepare_job(spec("bf16")).summary == DEMO
    # A finished run loads nothing.
    assert job.prepare_job(spec("auto"), hold=False).summary == DEMO
