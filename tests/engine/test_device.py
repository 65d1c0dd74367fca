"""The engine on an accelerator, simulated: everything where it belongs, little waited for, and times that are whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from simulated_device import DEVICE, Accelerator, simulated_cuda
from trainings import NARROW, SHORT, WIDE

from bandsearch.adapters.export import export_adapter
from bandsearch.adapters.merge import add_adapter, mount_adapter
from bandsearch.data.retention import retention_texts
from bandsearch.engine import head, measure, replicas
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import OutOfMemoryError
from bandsearch.engine.setup import EngineSetup
from bandsearch.evaluate.retention import retention_of
from bandsearch.models.loading import load_model
from bandsearch.probe import hidden, probe
from bandsearch.probe.effort import LEAST
from bandsearch.run.plainly import score_plainly
from bandsearch.spaces import load_space
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Arm
from bandsearch.values.levers import Levers
from bandsearch.values.plan import Costs
from bandsearch.values.trial import Point

FULL = Candidate.full_depth(4, rank=4, alpha=8, learning_rate=3e-3)
# In bf16 the prefixes of several sequences are computed together on an accelerator.
ROUNDING = {"float32": 1e-5, "bfloat16": 2e-3}

Build = Callable[..., Engine]


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    with simulated_cuda(monkeypatch) as found:
        yield found


@pytest.fixture
def on(setup_of: Callable[[str], EngineSetup]) -> Build:
    """`on(device, ...)` is a fresh engine there."""

    def build(device: object, family: str = "qwen2", dtype: str = "float32", levers: Levers | None = None) -> Engine:
        changed = {"device": str(device), "dtype": dtype, "levers": levers or Levers()}
        return Engine.load(setup_of(family).model_copy(update=changed))

    return build


@pytest.mark.usefixtures("accelerator")
def test_the_device_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(2, 2), torch.ones(2, 2, device=DEVICE)
    several = pytest.raises(RuntimeError, match="at least two devices")
    with several:
        there @ here
    with several:
        torch.stack([there.sum(), torch.tensor(1.0)])
    with several:
        there[0].index_select(0, torch.tensor([0]))
    with pytest.raises(TypeError, match=r"Tensor.cpu\(\) first"):
        there.numpy()
    # What it takes: a number, and places that the host names.
    assert (there * torch.tensor(2.0))[torch.tensor([1])].tolist() == [[2.0, 2.0]]


def test_the_device_has_an_end_of_memory(accelerator: Accelerator) -> None:
    weight = torch.ones(64, 64, device=DEVICE).requires_grad_()
    accelerator.memory = accelerator.held + 6 * weight.nbytes
    with pytest.raises(torch.OutOfMemoryError):
        ((weight * 2).exp().sin() * weight).cos().exp().sum().backward()
    weight.grad = None
    # What has failed is gone.
    ((weight * 2).sin()).sum().backward()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("levers", [Levers(), Levers.none()], ids=["all", "none"])
def test_it_computes_there_what_it_computes_on_a_cpu(
    accelerator: Accelerator, on: Build, dtype: str, levers: Levers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Logits in several chunks.
    monkeypatch.setattr(head, "MOST_LOGITS", 16 * 384)

    def readings(engine: Engine) -> list[float]:
        assert engine.notes == ()
        sessions = [engine.admit(each, SHORT) for each in (NARROW, WIDE)]
        for _ in range(2):
            assert engine.train_together(sessions) == {}
        engine.checkpoint(sessions[0], tmp_path / "session")
        restored = engine.restore(tmp_path / "session")
        assert engine.train_together([restored]) == {}
        points = engine.validate_together([*sessions, restored]).values()
        assert all(isinstance(each, Point) for each in points)
        scored = [loss for loss, _ in engine.losses("test", sessions[0], 4)]
        kept = retention_of(engine, sessions[0], retention_texts(None, engine.tokenizer, 64).texts[:4])
        assert all(each is not None for each in engine.generate("test", sessions[0], 3, 4))
        return [*(each.loss for each in points), *scored, *kept.losses, *engine.train_losses(sessions[0])]

    there = on(DEVICE, dtype=dtype, levers=levers)
    assert {each.device for each in (*there.model.parameters(), *there.model.buffers())} == {DEVICE}
    found = readings(there)
    assert accelerator.held > 0
    assert found == pytest.approx(readings(on("cpu", dtype=dtype, levers=levers)), abs=ROUNDING[dtype])


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("family", ["gemma4_text", "qwen3_5_moe_text", "gpt2", "falcon"])
def test_families_compute_there_what_they_compute_on_a_cpu(on: Build, family: str) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        engine = on(device, family)
        assert engine.notes == ()
        sessions = [engine.admit(each, SHORT) for each in (NARROW, FULL)]
        assert engine.train_together(sessions) == {}
        found.append([point.loss for point in engine.validate_together(sessions).values()])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_the_host_waits_once_in_a_step(accelerator: Accelerator, on: Build) -> None:
    engine = on(DEVICE)
    sessions = [engine.admit(each, SHORT) for each in (NARROW, WIDE)]
    engine.train_together(sessions)
    for session in sessions:
        engine._sessions[session].step = 0
    accelerator.waits.clear()
    # The same rows again, whose prefixes are there.
    engine.train_together(sessions)
    # Transformers looks whether several sequences share a row.
    assert [each for each in accelerator.waits if each != "aten::_local_scalar_dense"] == ["aten::_to_copy"]


def test_what_is_timed_is_done_when_the_clock_is_read(
    accelerator: Accelerator, on: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = on(DEVICE)
    under_way: list[bool] = []

    def clock() -> float:
        under_way.append(accelerator.busy)
        return time.monotonic()

    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=clock))
    measure._seconds_per_step(engine, 4)
    measure.seconds_each(lambda count: engine.losses("test", None, count), [20] * 4, 4)
    assert under_way
    assert not any(under_way)


def test_a_lack_of_memory_costs_time_and_in_the_end_one_session(accelerator: Accelerator, on: Build) -> None:
    expected = on("cpu")
    plain = expected.admit(FULL, SHORT)
    expected.train_together([plain])
    engine = on(DEVICE)
    room, seen = 2**21, set[str]()
    while True:
        accelerator.memory = None
        session = engine.admit(FULL, SHORT)
        accelerator.memory = accelerator.held + room
        failures = engine.train_together([session])
        if failures:
            break
        assert engine.train_losses(session) == pytest.approx(expected.train_losses(plain), abs=1e-5)
        seen |= {name for name in ("_pass", "_row") if getattr(engine._trainer, name).most < float("inf")}
        engine.evict(session)
        room //= 2
    # Rows were taken apart, and layers ran twice.
    assert seen == {"_pass", "_row"}
    assert isinstance(failures[session], OutOfMemoryError)
    assert not engine.holds(session)


def test_the_probe_finds_there_what_it_finds_on_a_cpu(
    accelerator: Accelerator, on: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "effort_for", lambda *_: LEAST)
    kept: list[torch.device] = []
    usual = hidden.layer_views

    def looking(base: hidden.States, *others: object) -> object:
        kept.extend(each.device for layer in base for each in layer)
        return usual(base, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(probe, "layer_views", looking)
    costs = Costs.model_construct(seconds_per_step=1.0)
    settings = probe.ProbeSettings.model_construct(
        seed=0, batch_size=4, space=load_space("default"), costs=costs, deadline=None
    )
    there, here = (probe.run_probe(on(device), settings) for device in (DEVICE, "cpu"))
    assert there.rate_range.best == here.rate_range.best
    assert there.layer_scores == pytest.approx(here.layer_scores, abs=1e-3)
    assert [each.raw for each in there.modules] == pytest.approx([each.raw for each in here.modules], rel=1e-3)
    assert [each.cka for each in there.views] == pytest.approx([each.cka for each in here.views], abs=5e-3)
    # Those of a large model would fill the memory of its accelerator, and its solver needs some.
    assert set(kept) == {torch.device("cpu")}
    assert accelerator.waits.index("empty_cache") < accelerator.waits.index("aten::_linalg_eigh")


@pytest.mark.usefixtures("accelerator")
def test_an_adapter_of_it_is_exported_mounted_scored_and_merged_there(
    on: Build, setup_of: Callable[[str], EngineSetup], tmp_path: Path
) -> None:
    engine = on(DEVICE, dtype="bfloat16")
    session = engine.admit(NARROW, SHORT)
    engine.advance(session, 2)
    source, ids = setup_of("qwen2").source, torch.ones(1, 5, dtype=torch.long, device=DEVICE)
    export_adapter(engine.adapter(session), NARROW, engine.layout, source, tmp_path / "adapter", "card")
    scored = engine.losses("test", session, 4)
    engine.close()
    mounted = mount_adapter(load_model(source, "bf16", str(DEVICE)), tmp_path / "adapter")
    plainly = score_plainly(mounted, engine.tokenizer, engine.dataset, Arm.WINNER, 4)
    assert [each.loss for each in plainly.examples] == pytest.approx([loss for loss, _ in scored], abs=0.05)
    with torch.no_grad():
        expected = mounted(ids).logits.float().cpu()
        add_adapter(engine.model, tmp_path / "adapter")
        assert torch.allclose(engine.model(ids).logits.float().cpu(), expected, atol=0.05)


@pytest.mark.usefixtures("accelerator")
def test_replicas_there_meet_by_nccl_and_train_as_one_does(
    on: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(
        replicas.dist, "init_process_group", lambda backend, **options: asked.update(options, backend=backend)
    )
    # The sum of one.
    monkeypatch.setattr(replicas.dist, "all_reduce", lambda tensor: asked.setdefault("summed", tensor.device))
    engine = on(DEVICE)
    assert engine.join(tmp_path / "store", 0, 1)
    assert (asked["backend"], asked["device_id"], asked["summed"]) == ("nccl", DEVICE, DEVICE)


BULKY = Candidate.full_depth(4, rank=256, alpha=8, learning_rate=1e-3)


def test_an_adapter_without_room_ends_by_itself(accelerator: Accelerator, on: Build) -> None:
    """When it is admitted, restored or attached, and when its first step asks for AdamW's moments."""
    engine = on(DEVICE)
    going = engine.admit(NARROW, SHORT)
    engine.train_together([going])
    before = accelerator.held
    bulky = engine.admit(BULKY, SHORT)
    size = accelerator.held - before
    no_room = pytest.raises(OutOfMemoryError, match="does not fit into memory beside the model")
    accelerator.memory = accelerator.held + size // 2
    with no_room:
        engine.admit(BULKY, SHORT)
    with no_room, engine.attached(bulky):
        pass
    # Gradients fit, and what is kept of them does not.
    accelerator.memory = accelerator.held + 3 * size // 2
    failures = engine.train_together([bulky, going])
    assert [*failures] == [bulky]
    assert isinstance(failures[bulky], OutOfMemoryError)
    assert not engine.holds(bulky)
    # The model is as it was, and whoever else is trained goes on.
    engine.train_together([going])
    accelerator.memory = None
    with engine.attached(going) as model:
        assert not any("base_layer" in name for name, _ in model.named_modules() if "layers.0" in name)
    again = engine.admit(NARROW, SHORT)
    for _ in range(3):
        assert engine.train_together([again]) == {}
    assert engine.train_losses(again) == pytest.approx(engine.train_losses(going), abs=1e-5)


def test_a_pack_without_room_is_not_measured_and_leaves_nothing(accelerator: Accelerator, on: Build) -> None:
    engine = on(DEVICE)
    usual = engine.admit

    def admit(candidate: Candidate, fidelity: object) -> str:
        if len(engine._sessions) == 1:
            raise OutOfMemoryError("One more adapter does not fit.")
        return usual(candidate, fidelity)  # type: ignore[arg-type]

    engine.admit = admit  # type: ignore[method-assign, assignment]
    with pytest.raises(OutOfMemoryError):
        measure._seconds_per_pass(engine, 2, 4)
    assert engine._sessions == {}
