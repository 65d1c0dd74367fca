"""The prefix cache: what it keeps is right, bounded, and safe against whoever is killed while writing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainings import NARROW, SHORT

from bandsearch.engine import machine
from bandsearch.engine.engine import Engine
from bandsearch.engine.prefix import PrefixCache, Shelf, cache_key
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import load_model
from bandsearch.values.band import Band
from bandsearch.values.spec import ModelSpec


def test_a_boundary_starts_from_the_nearest_one_below(engine: Engine, tmp_path: Path) -> None:
    cache = PrefixCache(engine.dataset, 32, torch.float32, tmp_path, "key")
    states = torch.randn(len(engine.dataset.train[4].input_ids), 32)
    cache.put("train", 4, 2, states)
    assert cache.boundary_below("train", 4, 3) == 2
    assert cache.boundary_below("train", 4, 1) == 0
    # Another engine may have kept it since it was looked for; a pass from there would run no layer.
    assert cache.boundary_below("train", 4, 2) == 0
    assert cache.boundary_below("train", 5, 3) == 0
    assert cache.boundary_below("validation", 4, 3) == 0
    kept = cache.get("train", 4, 2)
    assert kept is not None
    assert torch.equal(kept, states)
    assert cache.get("train", 5, 2) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_come_back_bit_for_bit_and_to_another_engine(tmp_path: Path, dtype: torch.dtype) -> None:
    lengths = [3, 1, 7]
    shelf = Shelf(tmp_path / "train-2.states", lengths, 16, dtype)
    states = [torch.randn(length, 16).to(dtype) for length in lengths]
    for index in (2, 0):
        shelf.put(index, states[index])
    other = Shelf(tmp_path / "train-2.states", lengths, 16, dtype)
    assert [index in other for index in range(3)] == [True, False, True]
    assert torch.equal(other.get(2), states[2])
    other.put(1, states[1])
    assert 1 in shelf
    assert torch.equal(shelf.get(1), states[1])


def test_it_takes_no_more_disk_than_it_may(engine: Engine, tmp_path: Path) -> None:
    lengths = [len(example.input_ids) for example in engine.dataset.train[:3]]
    cache = PrefixCache(engine.dataset, 8, torch.float32, tmp_path, "key", limit=sum(lengths[:2]) * 8 * 4)
    for index, length in enumerate(lengths):
        cache.put("train", index, 1, torch.ones(length, 8))
    assert [cache.get("train", index, 1) is not None for index in range(3)] == [True, True, False]
    assert not cache.keeps


def test_the_limit_is_the_folders_whoever_shares_it_and_however_often_they_start(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, limit = 4096, 3 * 2**20

    def caches(count: int) -> list[PrefixCache]:
        return [PrefixCache(engine.dataset, width, torch.float32, tmp_path, "key", limit) for _ in range(count)]

    def fill(both: list[PrefixCache]) -> int:
        for index, example in enumerate(engine.dataset.train):
            both[index % len(both)].put("train", index, 1, torch.ones(len(example.input_ids), width))
        return sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*.*"))

    monkeypatch.setattr("bandsearch.engine.prefix.BYTES_UNSEEN", 2**18)
    most = max(len(example.input_ids) for example in engine.dataset.train) * width * 4
    # What the other put there since one looked last.
    held = fill(caches(2))
    assert limit - most <= held <= limit + 2 * (2**18 + most)
    assert fill(caches(2)) <= max(held, limit) + most
    assert not caches(1)[0].keeps


def test_a_folder_that_holds_much_already_has_a_quarter_of_the_disk_in_all(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "train-1.states").write_bytes(bytes(2**20))
    free = type("Usage", (), {"free": 3 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    assert not PrefixCache(engine.dataset, 8, torch.float32, tmp_path, "key").keeps
    free.free += 2**20
    assert PrefixCache(engine.dataset, 8, torch.float32, tmp_path, "key").keeps


def test_a_full_disk_ends_the_keeping_not_the_training(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PrefixCache(engine.dataset, 8, torch.float32, tmp_path, "key")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(UserWarning, match="No space left"):
        cache.put("train", 0, 1, torch.ones(len(engine.dataset.train[0].input_ids), 8))
    monkeypatch.undo()
    assert cache.get("train", 0, 1) is None
    assert not cache.keeps


def test_a_disk_without_room_for_a_shelf_keeps_nothing_and_ends_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full tmpfs an engine was ended by the signal for a page that the disk has no room for."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = PrefixCache(engine.dataset, 8, torch.float32, tmp_path, "key")
    assert cache.get("train", 0, 1) is None
    flags = next(tmp_path.rglob("train-1*.flags"))
    assert flags.stat().st_blocks * 512 >= len(engine.dataset.train)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert cache.get("train", 0, 2) is None
    cache.put("train", 0, 1, torch.zeros(len(engine.dataset.train[0].input_ids), 8))
    assert cache.get("train", 0, 1) is None
    assert not cache.keeps


def test_without_room_the_losses_are_the_same(
    load: Callable[[str], Engine], setup_of: Callable[[str], EngineSetup]
) -> None:
    usual = load("qwen2")
    bare = Engine(
        load("qwen2").model,
        usual.layout,
        usual.tokenizer,
        usual.dataset,
        cache=PrefixCache(usual.dataset, usual.layout.hidden_size, torch.float32, None, "k", limit=0),
    )
    readings = []
    for engine in (usual, bare):
        session = engine.admit(NARROW, SHORT)
        readings.append([engine.advance(session, SHORT.steps).loss, *engine.train_losses(session)])
    assert readings[0] == pytest.approx(readings[1], abs=1e-5)


def test_the_key_names_tokens_and_facts(load: Callable[[str], Engine]) -> None:
    dataset = load("qwen2").dataset
    assert cache_key(dataset, "model", "fp32") == cache_key(dataset, "model", "fp32")
    assert cache_key(dataset, "model", "fp32") != cache_key(dataset, "model", "bf16")
    assert cache_key(dataset) != cache_key(load("gpt2").dataset)


@pytest.fixture
def kept_under(setup_of: Callable[[str], EngineSetup], tmp_path: Path) -> Callable[..., str]:
    """`kept_under(**changes)`: the key under which an engine of such a setup keeps states in `tmp_path`."""

    def key(**changes: Any) -> str:
        Engine.load(setup_of("qwen2").model_copy(update={"cache_directory": str(tmp_path)} | changes)).close()
        (folder,) = tmp_path.iterdir()
        return folder.name

    return key


def test_states_are_kept_under_all_that_they_depend_on(
    kept_under: Callable[..., str],
    setup_of: Callable[[str], EngineSetup],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine_module = "bandsearch.engine.engine"
    usual = kept_under()
    assert kept_under() == usual
    keys = [usual, kept_under(source=setup_of("llama").source), kept_under(dtype="bfloat16")]
    with monkeypatch.context() as four_bits:
        # A base in 4 bits names the type that it computes in as its own.
        four_bits.setattr(f"{engine_module}.load_model", lambda source, _, device: load_model(source, "bf16", device))
        keys.append(kept_under(dtype="nf4"))
    for changed in ("torch", "transformers"):
        with monkeypatch.context() as upgraded:
            versions = {"torch": version("torch"), "transformers": version("transformers"), changed: "99"}
            upgraded.setattr(f"{engine_module}.version", versions.__getitem__)
            keys.append(kept_under())
    with monkeypatch.context() as restarted:
        restarted.setattr(machine, "BOOT", tmp_path.parent / "boot")
        keys.append(kept_under())
        machine.BOOT.write_text("another\n")
        keys.append(kept_under())
    assert len(set(keys)) == len(keys) == 8


def test_an_engine_of_other_weights_reads_nothing_of_the_first(
    setup_of: Callable[[str], EngineSetup], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_model("qwen2"), tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.1 * each for name, each in weights.items()}, other / "model.safetensors", {"format": "pt"})
    source = resolve(ModelSpec(name=str(other)))
    apart = setup_of("qwen2").model_copy(update={"source": source})
    shared = {"cache_directory": str(tmp_path / "prefix")}
    losses = []
    for setup in (setup_of("qwen2").model_copy(update=shared), apart.model_copy(update=shared), apart):
        engine = Engine.load(setup)
        losses.append(engine.advance(engine.admit(NARROW, SHORT), SHORT.steps).loss)
    first, second, expected = losses
    assert second == expected
    assert second != first


def test_a_second_engine_computes_no_prefix_again(
    setup_of: Callable[[str], EngineSetup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = setup_of("qwen2").model_copy(update={"cache_directory": str(tmp_path)})
    first = Engine.load(setup)
    session = first.admit(NARROW, SHORT)
    expected = first.advance(session, SHORT.steps).loss
    # What the self-check asks for in its own bands is there as well.
    second = Engine.load(setup)
    monkeypatch.setattr(second._passes, "_compute", lambda *_: pytest.fail("computed again"))
    session = second.admit(NARROW, SHORT)
    assert second.advance(session, SHORT.steps).loss == expected


def test_bands_above_cost_no_layers_below(load: Callable[[str], Engine]) -> None:
    engine = load("qwen2")
    candidate = NARROW.model_copy(update={"bands": (Band(start=3, stop=4),)})
    session = engine.admit(candidate, SHORT)
    engine.advance(session, 2)
    calls = []
    layer = engine.model.get_submodule(f"{engine.layout.layers_path}.2.self_attn.q_proj")
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    session = engine.admit(candidate, SHORT)
    engine.advance(session, 2)
    handle.remove()
    assert calls == []


def test_a_writer_killed_at_any_moment_leaves_nothing_wrong(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import torch
        from pathlib import Path
        from bandsearch.engine.prefix import Shelf
        shelf = Shelf(Path({str(tmp_path / "train-1.states")!r}), [64] * 4000, 64, torch.float32)
        print("ready", flush=True)
        for index in range(4000):
            shelf.put(index, torch.full((64, 64), float(index + 1)))
        """
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    shelf = Shelf(tmp_path / "train-1.states", [64] * 4000, 64, torch.float32)
    while 20 not in shelf and writer.poll() is None:
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    there = [index for index in range(4000) if index in shelf]
    assert len(there) >= 20
    assert all(bool((shelf.get(index) == index + 1).all()) for index in there)
