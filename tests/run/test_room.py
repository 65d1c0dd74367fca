"""A model whose weights alone are more than the memory is refused before they are fetched."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch

from bandsearch.engine import devices
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
    inventory = DeviceInventory(gpus=gpus, cores=2, memory_bytes=own, gpu_memory_bytes=gpu, gpu_free_bytes=gpu)
    monkeypatch.setattr(job, "devices", lambda: inventory)
    monkeypatch.setattr(job, "fetch_weights", lambda _: pytest.fail("they were fetched"))
    if gpus and dtype == "auto":
        dtype = "fp32"
    with pytest.raises(ModelError, match=f"The weights of .* GB of memory.*{remedy}"):
        job.prepare_job(spec(dtype))


def test_a_gpu_that_others_use_has_what_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three has least; of the third, a slice, the driver says what is taken of the whole."""
    needed, gib = DEMO.bytes_by_dtype["float32"], 2**30
    gpus = [
        SimpleNamespace(name=name, total_memory=size * gib, uuid=name)
        for name, size in zip("abc", (8, 8, 4), strict=True)
    ]
    taken = 8 * gib - needed + 2**20
    answer = f"GPU-a, 100, 8192\nGPU-b, {taken // 2**20}, 8192\nGPU-c, 8000, 8192\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    monkeypatch.setattr(job, "fetch_weights", lambda _: pytest.fail("they were fetched"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=answer))
    with pytest.raises(ModelError, match=r"a GPU here has 0\.0 GB of memory free, of 8\.6 GB\. .*nvidia-smi.*--dtype"):
        job.prepare_job(spec("fp32"))

    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    assert devices.devices().gpu_free_bytes == 4 * gib


def test_what_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    room = DEMO.bytes_by_dtype["bfloat16"]
    monkeypatch.setattr(job, "devices", lambda: DeviceInventory(gpus=(), cores=2, memory_bytes=room))
    assert job.prepare_job(spec("bf16")).summary == DEMO
    # A finished run loads nothing.
    assert job.prepare_job(spec("auto"), hold=False).summary == DEMO
