"""What is forgotten: exact for an adapter that changes nothing, and as plain transformers computes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bandsearch.adapters.lora import attach
from bandsearch.data.retention import MOST_TEXTS, retention_texts
from bandsearch.evaluate import retention
from bandsearch.evaluate.arms import compare
from bandsearch.evaluate.retention import measure_retention
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import DataError
from bandsearch.values.evaluation import ArmScores, ExampleScore
from bandsearch.values.retention import Retention
from bandsearch.values.source import Source

CANDIDATE = Candidate(bands=(Band(start=1, stop=3),), rank=4, alpha=8, targets=("all",), learning_rate=1e-3)


@pytest.fixture(scope="module")
def source(tiny_model: Callable[[str], Path]) -> Source:
    return Source(location=str(tiny_model("qwen2")), is_local=True, slug="tiny")


def test_where_memory_does_not_do_fewer_texts_go_through_at_a_time(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = load_tokenizer(source), load_model(source)
    texts, measured = retention_texts(None, tokenizer, 64).texts[:5], retention._measured
    wanted = measure_retention(model, tokenizer.pad_token_id, texts)

    def two_at_most(model: object, pad: int, batch: list[object]) -> tuple[list[float], list[float]]:
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return measured(model, pad, batch)

    monkeypatch.setattr(retention, "_measured", two_at_most)
    found = measure_retention(model, tokenizer.pad_token_id, texts)
    assert found.losses == pytest.approx(wanted.losses, abs=1e-5)
    assert len(found.divergences) == len(texts)


def test_of_a_long_text_the_beginning_is_read(source: Source, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("Begin" + " word" * 500)
    (read,) = retention_texts(str(tmp_path / "long.txt"), load_tokenizer(source), 64).texts
    assert load_tokenizer(source).decode(read.input_ids).startswith("Begin")


def test_an_adapter_that_changes_nothing_forgets_nothing(source: Source) -> None:
    tokenizer, model = load_tokenizer(source), load_model(source)
    texts = retention_texts(None, tokenizer, 64).texts
    bare = measure_retention(model, tokenizer.pad_token_id, texts)
    # B is zero before the first step.
    untrained = measure_retention(attach(model, CANDIDATE, layout_of(model), 0), tokenizer.pad_token_id, texts)
    assert untrained.divergences == bare.divergences == (0.0,) * len(texts)
    assert untrained.losses == bare.losses


def test_loss_and_divergence_are_those_of_plain_transformers(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text by text without padding, both models whole, the divergence by torch.distributions in double precision."""
    tokenizer, base, model = load_tokenizer(source), load_model(source), load_model(source)
    texts = retention_texts(None, tokenizer, 48).texts[:9]
    peft = attach(model, CANDIDATE, layout_of(model), 0)
    torch.manual_seed(0)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 1.0)
    monkeypatch.setattr(retention, "MOST_LOGITS", 3 * 48 * 384)
    found = measure_retention(peft, tokenizer.pad_token_id, texts)
    for text, loss, divergence in zip(texts, found.losses, found.divergences, strict=True):
        ids = torch.tensor(text.input_ids[None], dtype=torch.long)
        with torch.no_grad():
            of_base, of_ours = (each(ids).logits[0, :-1].double() for each in (base, peft))
        kept = torch.tensor(text.supervised[1:])
        expected = torch.nn.functional.cross_entropy(of_ours[kept], ids[0, 1:][kept])
        p, q = (torch.distributions.Categorical(logits=logits[kept]) for logits in (of_base, of_ours))
        assert loss == pytest.approx(float(expected), abs=1e-5)
        assert divergence == pytest.approx(float(torch.distributions.kl_divergence(p, q).mean()), abs=1e-5)
        assert divergence > 0.01


def test_texts_come_from_jsonl_and_from_paragraphs(source: Source, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(source)
    plain = tmp_path / "prose.txt"
    plain.write_text("The first\nparagraph.\n\n\nThe second one.\n")
    read = retention_texts(str(plain), tokenizer, 64)
    assert (read.name, len(read.texts)) == ("prose.txt", 2)
    assert {tokenizer.decode(text.input_ids, skip_special_tokens=True) for text in read.texts} == {
        "The first\nparagraph.",
        "The second one.",
    }
    many = tmp_path / "many.jsonl"
    rows = [json.dumps({"text": f"The answer is {n}."}) for n in range(300)]
    many.write_text("\n".join(rows))
    forwards = retention_texts(str(many), tokenizer, 64).texts
    many.write_text("\n".join(reversed(rows)))
    assert len(forwards) == MOST_TEXTS
    backwards = retention_texts(str(many), tokenizer, 64).texts
    assert [text.input_ids.tolist() for text in forwards] == [text.input_ids.tolist() for text in backwards]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "empty"), ('{"text": "good"}\n{"text": 3.5}\n', "retained.jsonl:2"), ('{"other": 1}', "no known shape")],
)
def test_a_bad_file_is_named_with_its_line(source: Source, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "retained.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=words):
        retention_texts(str(file), load_tokenizer(source), 64)


def test_differences_in_retention_are_paired_by_text() -> None:
    def arm(name: str, losses: tuple[float, ...], divergences: tuple[float, ...]) -> ArmScores:
        kept = Retention(losses=losses, divergences=divergences)
        return ArmScores(arm=name, examples=(ExampleScore(loss=1.0, supervised_tokens=1),), retention=kept)

    ours, theirs = arm("winner", (2.0, 3.0), (0.1, 0.2)), arm("full_depth", (2.5, 3.5, 9.0), (0.3, 0.4, 9.0))
    found = {each.metric: each.difference.mean for each in compare((ours, theirs), pairs=(("winner", "full_depth"),))}
    assert found["retention_loss"] == pytest.approx(-0.5)
    assert found["divergence"] == pytest.approx(-0.2)
