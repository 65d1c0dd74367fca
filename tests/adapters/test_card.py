"""The model card and the command that serves the adapter."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from bandsearch.adapters.card import model_card
from bandsearch.adapters.limits import max_lora_rank, serve_command
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import (
    ArmScores,
    Choice,
    Comparison,
    Evaluation,
    ExampleScore,
    Interval,
    Trained,
    Winner,
)
from bandsearch.values.layout import Layout, Linear, Serving
from bandsearch.values.lineage import Lineage
from bandsearch.values.source import Source

HUB = Source(location="Qwen/Qwen2.5-7B", revision="abc", is_local=False, slug="qwen2.5-7b")
LOCAL = Source(location="/models/my model", is_local=True, slug="my-model")
LAYOUT = Layout(
    family="qwen2",
    layers_path="model.layers",
    layer_count=28,
    hidden_size=8,
    linears=(Linear(name="self_attn.q_proj", group="attention", in_features=8, out_features=8),),
)


def from_(source: Source, data: str, template: str | None = None, serving: Serving = Serving.NATIVE, **more) -> Lineage:
    layout = LAYOUT.model_copy(update={"serving": serving})
    return Lineage(source=source, layout=layout, data=data, template=template, **more)


def a_winner() -> Winner:
    candidate = Candidate(bands=(Band(start=8, stop=20),), rank=12, alpha=24, targets=("all",), learning_rate=2e-4)
    return Winner(
        candidate=candidate,
        role=Role.SEARCHED,
        trainable_parameters=2304,
        choice=Choice.BEATS_BASELINE,
        reason="Loss 0.41 against 0.44, outside the noise.",
        baseline=candidate.model_copy(update={"bands": (Band(start=0, stop=28),)}),
        baseline_parameters=5376,
        finalists=(),
    )


def an_evaluation() -> Evaluation:
    scores = (ExampleScore(loss=0.5, supervised_tokens=3, correct=True), ExampleScore(loss=0.25, supervised_tokens=3))
    winner = ArmScores(
        arm="winner",
        examples=scores,
        trainable_parameters=2304,
        tasks={"gsm8k/exact_match": 0.125},
        task_documents={"gsm8k": 16},
    )
    difference = Interval(mean=-0.031, low=-0.05, high=-0.012)
    return Evaluation(
        arms=(ArmScores(arm="base", examples=scores), winner),
        comparisons=(Comparison(arm="winner", reference="full_depth", metric="loss", difference=difference),),
    )


def test_the_card_carries_the_numbers_and_both_ways_to_use_it():
    card = model_card(a_winner(), from_(HUB, "my.jsonl", None), Path("run/adapter"), an_evaluation())
    _, header, body = card.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["base_model"] == "Qwen/Qwen2.5-7B"
    assert fields["library_name"] == "peft"
    assert "lora" in fields["tags"]
    for text in (
        "8 to 19 of 28 (qwen2)",
        "2,304 (tuned full-depth LoRA: 5,376)",
        "Loss 0.41 against 0.44, outside the noise.",
        "2 examples that were not trained on; exact match is over the first 1 of them, generated greedily.",
        "| winner | 2,304 | 0.3750 | 1.0000 | 0.1250 (first 16 documents) |",
        "loss, winner minus full depth: -0.0310 (95% interval -0.0500 to -0.0120, paired bootstrap)",
        "PeftModel.from_pretrained(base, 'run/adapter')",
        "--max-lora-rank 16",
    ):
        assert text in body


def test_a_baseline_that_wins_is_one_training() -> None:
    winner, evaluation = a_winner(), an_evaluation()
    assert "minus full depth" in model_card(winner, from_(HUB, "my.jsonl"), Path("adapter"), evaluation)
    winner = winner.model_copy(update={"candidate": winner.baseline})
    card = model_card(winner, from_(HUB, "my.jsonl"), Path("adapter"), evaluation)
    assert "| base |" in card
    assert "| winner |" not in card
    assert "minus full depth" not in card


def test_the_card_says_how_it_was_trained_in_the_end():
    chosen = a_winner()
    trained = Trained(candidate=chosen.candidate, learning_rate=5e-5, steps=300, kept_step=225)
    winner = chosen.model_copy(update={"trainings": (trained,)})
    card = model_card(winner, from_(HUB, "my.jsonl", None), Path("run/adapter"))
    assert "| learning rate | 5e-05 |" in card
    assert "| training | 300 steps; this is the adapter of step 225 |" in card


def test_a_card_can_be_written_before_the_evaluation():
    card = model_card(a_winner(), from_(LOCAL, "demo:words", "plain, Q: {prompt}\\n{completion}"), Path("adapter"))
    assert "Test split" not in card
    assert "base_model" not in card


def test_the_card_says_how_to_ask():
    chat, plain = (
        model_card(a_winner(), from_(HUB, "x", template), Path("adapter"))
        for template in (None, "plain, User: {prompt}\\nAssistant: {completion}")
    )
    assert "apply_chat_template" in chat
    assert "`plain, User: {prompt}\\nAssistant: {completion}`" in plain
    assert "/v1/completions" in plain
    assert "--chat-template" not in chat + plain


def test_the_card_of_an_adapter_with_its_own_chat_template_uses_it():
    template, path = "the chat template mine.jinja", Path("run/adapter/chat_template.jinja")
    card = model_card(a_winner(), from_(HUB, "x", template), Path("run/adapter"), None, path)
    assert "`the chat template mine.jinja`" in card
    assert "/v1/chat/completions" in card
    assert "--chat-template run/adapter/chat_template.jinja" in card
    assert "tokenizer.chat_template = Path('run/adapter/chat_template.jinja').read_text" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")


def test_a_family_that_vllm_does_not_serve_gets_no_serve_command():
    card = model_card(a_winner(), from_(HUB, "x", serving=Serving.NONE), Path("adapter"))
    assert "vllm serve" not in card
    assert "bandsearch export RUN DESTINATION --merged" in card


def test_text_from_data_is_escaped():
    card = model_card(a_winner(), from_(HUB, "a|b\n<script>`x`", None), Path("adapter"))
    assert "<script>" not in card
    assert "a\\|b &lt;script>'x'" in card


def test_the_serve_command_is_one_shell_line():
    words = shlex.split(serve_command(LOCAL, Path("out/my adapter"), 24))
    assert words[:3] == ["vllm", "serve", "/models/my model"]
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert words[-1] == "bandsearch=out/my adapter"
    assert "--revision abc" in serve_command(HUB, Path("a"), 4)
    assert "--chat-template" not in words
    words = shlex.split(
        serve_command(LOCAL, Path("my adapter"), 4, chat_template=Path("my adapter/chat_template.jinja"))
    )
    assert words[words.index("--chat-template") + 1] == "my adapter/chat_template.jinja"


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512), (513, None)])
def test_the_smallest_rank_limit_that_holds_an_adapter(rank: int, allowed: int | None):
    assert max_lora_rank(rank) == allowed


def test_an_adapter_of_a_base_in_4_bits_says_so_and_loads_one():
    lineage = from_(HUB, "x", dtype="bfloat16", is_nf4=True, commit="c0ffee")
    card = model_card(a_winner(), lineage, Path("adapter"))
    assert "Trained and measured on an NF4 base" in card
    assert "| precision | nf4, computed in bfloat16 |" in card
    assert "| base | Qwen/Qwen2.5-7B, commit c0ffee |" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "quantization_config=four_bits" in code
    assert 'bnb_4bit_compute_dtype="bfloat16"' in code
    compile(code, "card", "exec")
    assert "NF4" not in model_card(a_winner(), from_(HUB, "x", dtype="bfloat16"), Path("adapter"))


def test_the_card_of_a_merged_model_needs_no_peft():
    card = model_card(a_winner(), from_(HUB, "x"), Path("my model"), merged=True)
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    assert "peft" not in card.lower()
    assert "AutoModelForCausalLM.from_pretrained('my model')" in body
    assert "vllm serve 'my model'" in body


def test_the_card_says_how_many_were_not_judged():
    evaluation = an_evaluation().model_copy(update={"too_long": 1})
    card = model_card(a_winner(), from_(HUB, "x"), Path("adapter"), evaluation)
    assert "exact match is over 1 of the first ones (1 are not judged, as their reference answer is longer" in card
    unread = [arm.model_copy(update={"examples": arm.examples[1:] * 2}) for arm in evaluation.arms]
    card = model_card(
        a_winner(), from_(HUB, "x"), Path("adapter"), evaluation.model_copy(update={"arms": tuple(unread)})
    )
    assert "not trained on; no exact match: 1 are not judged" in card
