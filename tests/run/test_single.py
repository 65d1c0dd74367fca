"""Stages on their own leave nothing behind but what they were asked for."""

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bandsearch import api
from bandsearch.engine.failures import LostEngineError
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import load_model
from bandsearch.probe.forward import token_losses
from bandsearch.run import single
from bandsearch.run.job import prepare_job
from bandsearch.values.errors import BandsearchError, InterruptedRunError
from bandsearch.values.progress import Stop


def test_plan_takes_its_prefix_cache_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is ended without a chance to do so."""
    seen: list[Path] = []

    def start(job: Any, listen: Any, data: Path, cache: Path, stop: Stop) -> SimpleNamespace:
        data.touch()
        (cache / "key").mkdir(parents=True)
        seen.append(cache)
        return SimpleNamespace(stop=lambda: None, abandoned_once=nullcontext)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(single, "prepare_job", lambda spec: SimpleNamespace(dataset=None))
    monkeypatch.setattr(single, "keep", lambda dataset, path: None)
    monkeypatch.setattr(single, "start_engines", start)
    monkeypatch.setattr(single, "measured_plan", lambda *_, **__: "planned")
    assert single.plan_only(SimpleNamespace()) == "planned"  # type: ignore[comparison-overlap, arg-type]
    assert seen[0].is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_is_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise LostEngineError("An engine died.", "Look.")

    monkeypatch.setattr(single, "prepare_job", lambda spec: SimpleNamespace(dataset=None))
    monkeypatch.setattr(single, "keep", lambda dataset, path: None)
    monkeypatch.setattr(single, "start_engines", start)
    with pytest.raises(InterruptedRunError, match="Stopped"):
        single.plan_only(SimpleNamespace(), stop=lambda: True)  # type: ignore[arg-type]
    with pytest.raises(LostEngineError, match=r"^An engine died\. Look\.$") as lost:
        single.plan_only(SimpleNamespace())  # type: ignore[arg-type]
    # Nothing is there to go on with, which is what 75 promises.
    assert lost.value.exit_code == BandsearchError.exit_code


def test_an_adapter_that_is_more_than_lora_is_scored_as_it_was_trained(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Beside weights in bfloat16: added to them a small update is mostly lost, and others change by as much."""
    rows = [json.dumps({"prompt": f"What follows {n}?", "completion": f" {n + 1}"}) + "\n" for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(rows))
    spec = api.specify(str(tiny_model("llama")), str(tmp_path / "mine.jsonl"), trials=1, dtype="bf16", max_length=64)
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], r=3, use_dora=True)
    trained: Any = get_peft_model(load_model(resolve(spec.model), "bf16"), config).eval()
    for path, factor in trained.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(factor, std=0.02)
    trained.save_pretrained(tmp_path / "adapter")
    examples = prepare_job(spec).dataset.test

    def loss() -> float:
        """Of one pass over all, summed in fp32."""
        with torch.no_grad():
            return float(token_losses(trained.get_base_model(), examples).mean())

    with trained.disable_adapter():
        without = loss()
    base, tuned = api.evaluate(tmp_path / "adapter", spec).arms
    assert base.loss == pytest.approx(without, abs=1e-5)
    assert tuned.loss == pytest.approx(loss(), abs=1e-5)
    assert base.loss != tuned.loss
