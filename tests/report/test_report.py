"""The report: one file, no network, everything escaped, and only claims that the numbers carry."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plausible import RUNGS, plausible_facts

from bandsearch.evaluate.arms import compare
from bandsearch.run.forgetting import forgetting_words
from bandsearch.run.report import ReportFacts, write_report
from bandsearch.run.rows import difference_row
from bandsearch.run.verdict import verdict
from bandsearch.run.words import markdown_text
from bandsearch.search.correlation import signals
from bandsearch.values.atlas import Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Role
from bandsearch.values.evaluation import (
    Arm,
    ArmScores,
    Choice,
    Comparison,
    Evaluation,
    ExampleScore,
    Interval,
    Metric,
    Trained,
)
from bandsearch.values.retention import Retention
from bandsearch.values.trial import TrialState

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Checks that elements nest, and collects text, attributes and the words shown on hovering."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open or "script" in self.open:
            return
        (self.titles if "title" in self.open else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def html_of(facts: ReportFacts, directory: Path) -> str:
    write_report(facts, directory)
    return (directory / "report.html").read_text(encoding="utf-8")


def test_one_file_that_needs_no_network(tmp_path: Path) -> None:
    html = html_of(plausible_facts(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert Reader(html).addresses == []
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_every_drawing_is_well_formed_and_labelled(tmp_path: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html_of(plausible_facts(), tmp_path), re.DOTALL)
    assert len(drawings) > 15
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.attrib["aria-label"]
        assert "nan" not in drawing


def test_the_numbers_are_there(tmp_path: Path) -> None:
    facts = plausible_facts()
    reader = Reader(html_of(facts, tmp_path))
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    winner, full = facts.evaluation.arm(Arm.WINNER), facts.evaluation.arm(Arm.FULL_DEPTH)
    for expected in (
        facts.verdict,
        f"{winner.loss:.4f}",
        f"{full.loss:.4f}",
        f"{facts.winner.trainable_parameters:,}",
        "9 min 46 s",
        "−0.0280 to −0.0120",
        facts.serve_command,
    ):
        assert expected in reader.text
        assert markdown_text(expected) in markdown or expected in markdown
    # The heat map, from the trials themselves.
    for rung in RUNGS:
        best = min(loss for trial in facts.trials if (loss := trial.loss_at(rung)) is not None)
        assert any(f"loss {best:.4f}" in title for title in reader.titles)


def test_the_report_says_how_to_use_the_adapter_and_to_train_it_elsewhere(tmp_path: Path) -> None:
    given = {"python": "load('<b>')\n\nmodel", "recipe": "LoraConfig(\n    r=8,\n)", "merging": "bandsearch export r D"}
    html = html_of(dataclasses.replace(plausible_facts(), **given), tmp_path)
    shown = "\n".join(Reader(html).words)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for code in given.values():
        assert code in shown
        assert code.replace("\n", "\n    ") in markdown.replace("\n\n", "\n    \n")


def test_the_report_says_how_tasks_were_asked(tmp_path: Path) -> None:
    facts = plausible_facts()
    evaluation = facts.evaluation.model_copy(update={"task_form": "through the chat template mine, 2-shot"})
    html = html_of(dataclasses.replace(facts, evaluation=evaluation), tmp_path)
    for text in (html, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "asked through the chat template mine, 2-shot" in text


def test_where_vllm_serves_no_adapters_the_report_says_so_and_gives_no_command(tmp_path: Path) -> None:
    facts = dataclasses.replace(plausible_facts(), not_served="It serves none; `bandsearch export r d --merged` helps.")
    html = html_of(facts, tmp_path)
    for text in (html, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "export r d" in text
        assert "vllm serve" not in text


def test_the_report_says_that_the_base_was_in_4_bits(tmp_path: Path) -> None:
    facts = plausible_facts()
    spec = facts.spec.model_copy(update={"model": facts.spec.model.model_copy(update={"dtype": "nf4"})})
    assert "NF4" not in html_of(facts, tmp_path)
    html = html_of(dataclasses.replace(facts, spec=spec), tmp_path)
    for text in (html, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "trained and measured on an NF4 base" in text


HOSTILE = "<script>alert('x')</script>|`#*_[a](b)\n\n# h"


def test_text_from_data_and_models_is_escaped(tmp_path: Path) -> None:
    facts = plausible_facts(text=HOSTILE, model="org/<b>m</b>", data="d<img src=x onerror=y>.jsonl")
    words = dict.fromkeys(("verdict", "serve_command", "merging", "python", "recipe"), HOSTILE)
    facts = dataclasses.replace(facts, environment={"<i>": HOSTILE}, data_notes=(HOSTILE,), **words)
    html = html_of(facts, tmp_path)
    reader = Reader(html)
    assert reader.addresses == []
    assert "<script" not in html
    assert "alert('x')" in reader.text
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside_code = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert "<script" not in outside_code
    assert "\n# h" not in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) <= 7 for line in tables)


@pytest.mark.parametrize(
    ("gain", "choice", "words", "tone"),
    [
        (-0.02, Choice.BEATS_BASELINE, "beats tuned full-depth LoRA", "good"),
        (-0.02, Choice.SMALLEST_WITHIN_NOISE, "not beyond noise on validation, so no win is claimed", "open"),
        (0.001, Choice.BEATS_BASELINE, "No gain was shown", "open"),
        (0.001, Choice.SMALLEST_WITHIN_NOISE, "No gain was shown", "open"),
        (0.02, Choice.BEATS_BASELINE, "behind full depth on the test split", "bad"),
        (0.001, Choice.BASELINE, "No gain was shown: full depth is handed over", "open"),
    ],
)
def test_a_win_is_claimed_only_with_numbers(gain: float, choice: Choice, words: str, tone: str, tmp_path: Path) -> None:
    facts = plausible_facts(gain=gain)
    facts = dataclasses.replace(facts, winner=facts.winner.model_copy(update={"choice": choice}))
    html = html_of(facts, tmp_path)
    headline = re.search(r'<h1 class="(\w+)">(.*?)</h1>', html)
    assert headline is not None
    assert headline[1] == tone
    assert words in headline[2]
    assert words in (tmp_path / "report.md").read_text(encoding="utf-8")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    layers=st.integers(1, 80),
    trials=st.integers(5, 40),
    gain=st.floats(-0.5, 0.5),
    noise=st.floats(0, 0.1),
)
def test_any_run_can_be_shown(
    seed: int, layers: int, trials: int, gain: float, noise: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    facts = plausible_facts(seed, layers, trials, gain, noise)
    html = html_of(facts, tmp_path_factory.mktemp("report"))
    Reader(html)
    assert "nan" not in html
    assert "inf" not in re.sub(r"information|inflat", "", html)


def test_a_run_with_next_to_nothing_can_be_shown(tmp_path: Path) -> None:
    """No finished trial, no views, no range test, no generation, no samples, one finalist, no budget."""
    facts = plausible_facts()
    failed = [trial.model_copy(update={"points": (), "state": TrialState.OUT_OF_MEMORY}) for trial in facts.trials]
    profile = facts.profile.model_copy(
        update={
            "views": (),
            "rate_range": facts.profile.rate_range.model_copy(update={"points": ()}),
            "layer_scores": tuple(0.0 for _ in facts.profile.layer_scores),
        }
    )
    arms = tuple(
        arm.model_copy(
            update={
                "examples": tuple(
                    example.model_copy(update={"generated": None, "correct": None}) for example in arm.examples
                ),
                "tasks": {},
            }
        )
        for arm in facts.evaluation.arms
    )
    winner = facts.winner.model_copy(update={"finalists": facts.winner.finalists[:1]})
    bare = dataclasses.replace(
        facts,
        spec=facts.spec.model_copy(update={"budget": None, "trials": 5}),
        trials=tuple(failed),
        profile=profile,
        winner=winner,
        evaluation=facts.evaluation.model_copy(update={"arms": arms, "comparisons": (), "samples": ()}),
        data_notes=(),
        ledger_by_stage={},
    )
    for trials in (tuple(failed), ()):
        reader = Reader(html_of(dataclasses.replace(bare, trials=trials), tmp_path))
        assert "What the models answer" not in reader.text
        assert "Bands tried" not in reader.text
        assert "no time limit" in reader.text


@pytest.mark.parametrize("scored", [1, 5])
def test_a_test_split_that_was_scored_in_small_part_can_be_shown(tmp_path: Path, scored: int) -> None:
    facts = plausible_facts()
    arms = tuple(arm.model_copy(update={"examples": arm.examples[:scored]}) for arm in facts.evaluation.arms)
    evaluation = facts.evaluation.model_copy(update={"arms": arms})
    text = Reader(html_of(dataclasses.replace(facts, evaluation=evaluation), tmp_path)).text
    shown = [sample.prompt in text for sample in facts.evaluation.samples]
    assert shown == [place < scored for place in range(len(shown))]


def test_the_report_says_over_how_much_every_number_is(tmp_path: Path) -> None:
    facts = plausible_facts()
    base, *others = facts.evaluation.arms
    arms = (base.model_copy(update={"task_documents": {"bandsearch_words": 16}}), *others)
    cut = dataclasses.replace(facts, evaluation=facts.evaluation.model_copy(update={"arms": arms}))
    for facts_of, documents in ((cut, True), (facts, False)):
        reader = Reader(html_of(facts_of, tmp_path))
        for text in (reader.text, (tmp_path / "report.md").read_text()):
            assert "200 examples that no stage has seen before" in text
            assert "Exact match is over the first 100 of them" in text
            assert ("0.0000 (first 16)" in text) is documents
            assert ("time allowed so many of its documents" in text) is documents


def test_a_task_without_a_score_is_named_with_its_reason(tmp_path: Path) -> None:
    facts = plausible_facts()
    base, full, winner = (
        arm.model_copy(update={"task_failures": {"gsm8k": reason}})
        for arm, reason in zip(facts.evaluation.arms, ("<b>gone</b>", "late", "<b>gone</b>"), strict=True)
    )
    evaluation = facts.evaluation.model_copy(update={"arms": (base, full, winner)})
    html = Reader(html_of(dataclasses.replace(facts, evaluation=evaluation), tmp_path)).text
    assert "gsm8k could not be read (base model, winner): <b>gone</b>." in html
    markdown = (tmp_path / "report.md").read_text()
    for text in (html, markdown):
        assert "gsm8k could not be read (full-depth LoRA): late." in text
    assert "<b>" not in markdown
    assert "\n\n| difference |" in markdown


def test_the_final_training_is_shown_as_it_came_out(tmp_path: Path) -> None:
    facts = plausible_facts()
    winner, baseline = facts.winner.candidate, facts.winner.baseline
    trainings = (
        Trained(candidate=winner, learning_rate=0.00123, steps=450, kept_step=375),
        Trained(candidate=baseline, learning_rate=baseline.learning_rate, steps=600, kept_step=525),
    )
    update = {"training_steps": 600, "trainings": trainings}
    facts = dataclasses.replace(facts, winner=facts.winner.model_copy(update=update))
    reader = Reader(html_of(facts, tmp_path))
    assert "winner: 0.0012" in reader.titles
    for text in (reader.text, (tmp_path / "report.md").read_text()):
        assert "450 steps of the final training" in text
        assert "all, rate 0.0012, lora" in text
        assert (
            f"the adapter of step 375 is kept, rate 0.0012 because {winner.learning_rate:.2g} diverged; "
            "full depth: 600 steps, the adapter of step 525 is kept"
        ) in text


def test_a_winner_that_is_the_baseline_is_shown_once(tmp_path: Path) -> None:
    facts = plausible_facts()
    winner = facts.winner.model_copy(update={"candidate": facts.winner.baseline, "choice": Choice.BASELINE})
    reader = Reader(html_of(dataclasses.replace(facts, winner=winner), tmp_path))
    assert "winner −" not in reader.text
    assert "full-depth LoRA − base model" in reader.text
    assert "Test loss vs base" in reader.text


def test_what_was_not_compared_is_not_judged(tmp_path: Path) -> None:
    facts = plausible_facts()
    winner = facts.winner.model_copy(
        update={"candidate": facts.winner.baseline, "choice": Choice.UNCOMPARED, "finalists": ()}
    )
    reader = Reader(html_of(dataclasses.replace(facts, winner=winner), tmp_path))
    assert "Nothing could be compared in this budget" in reader.text
    assert "best choice" not in reader.text
    for page in (reader.text, (tmp_path / "report.md").read_text()):
        assert "Confirmation" not in page
    said = verdict(winner, facts.evaluation)
    assert said.startswith("Nothing could be compared in this budget: full-depth LoRA is handed over")
    assert "No gain was shown" not in said


def test_a_candidate_on_several_bands_is_named_and_shaded(tmp_path: Path) -> None:
    from bandsearch.values.band import Band

    facts = plausible_facts()
    bands = (Band(start=1, stop=3), Band(start=6, stop=7))
    candidate = facts.winner.candidate.model_copy(update={"bands": bands})
    facts = dataclasses.replace(facts, winner=facts.winner.model_copy(update={"candidate": candidate}))
    reader = Reader(html_of(facts, tmp_path))
    assert "layers 1–2 and 6" in reader.text
    assert "layer 6: adapted" in reader.titles


def test_the_failed_are_counted_and_marked(tmp_path: Path) -> None:
    facts = plausible_facts()
    reader = Reader(html_of(facts, tmp_path))
    failed = [trial for trial in facts.trials if trial.state is TrialState.DIVERGED]
    assert f"{len(failed)} diverged" in reader.text
    for trial in failed:
        assert any(title.startswith(f"#{trial.number} ") and "diverged" in title for title in reader.titles)
    assert {trial.role for trial in facts.trials} == set(Role)


def test_a_correlation_is_shown_with_its_number_of_candidates_and_what_chance_gives(tmp_path: Path) -> None:
    facts = plausible_facts()
    html = Reader(html_of(facts, tmp_path)).text
    markdown = (tmp_path / "report.md").read_text()
    found = signals(facts.trials, facts.winner.finalists, facts.profile, facts.plan.rungs)
    grouped = [signal for signal in found if signal.within is not None]
    assert grouped
    for text in (html, markdown):
        assert "equal width" not in text
        assert "thirds of depth" in text
        for agreement in (*(signal.across for signal in found), *(signal.within for signal in grouped)):
            assert f"(n = {agreement.pairs}, chance ±{agreement.chance:.2f})" in text


def test_what_each_finalist_forgets_is_a_column_where_it_was_read(tmp_path: Path) -> None:
    facts = plausible_facts()
    assert "divergence" not in html_of(facts, tmp_path)
    first, *others = facts.winner.finalists
    finalists = (first.model_copy(update={"divergence": 0.1234}), *others)
    facts = dataclasses.replace(facts, winner=facts.winner.model_copy(update={"finalists": finalists}))
    html = Reader(html_of(facts, tmp_path)).text
    markdown = (tmp_path / "report.md").read_text()
    for text in (html, markdown):
        assert "0.1234" in text
        assert "what each forgets" in text
    table = markdown.split("## Confirmation")[1].split("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == len(finalists) + 2
    assert {line.count("|") for line in rows} == {8}
    assert table.count("| – |") == len(others)


def test_a_local_path_is_shown_by_its_last_part(tmp_path: Path) -> None:
    facts = plausible_facts(model="/srv/models/mine", data="/home/someone/my.jsonl")
    reader = Reader(html_of(facts, tmp_path))
    assert "bandsearch · mine on my.jsonl" in reader.text


def test_what_was_forgotten_and_recommended_is_in_both_twins(tmp_path: Path) -> None:
    facts = plausible_facts()
    arms = tuple(
        arm.model_copy(update={"retention": Retention(losses=(1.0 + lost, 2.0 + lost), divergences=(far, far + 0.01))})
        for arm, lost, far in zip(facts.evaluation.arms, (0.0, 0.3, 0.1), (0.0, 0.4, 0.2), strict=True)
    )
    evaluation = Evaluation(arms=arms, comparisons=compare(arms), retention_texts="<b>my</b> texts")
    tried = next(trial for trial in facts.trials if trial.points and trial.role is Role.SEARCHED)
    suggested = (
        Suggestion(candidate=tried.candidate, reason="won <i>before</i>"),
        Suggestion(candidate=tried.candidate.model_copy(update={"rank": 3}), reason="never tried"),
    )
    assert not evaluation.comparison(Arm.WINNER, Arm.FULL_DEPTH, Metric.DIVERGENCE).difference.high > 0
    html = Reader(html_of(dataclasses.replace(facts, evaluation=evaluation, prior=suggested), tmp_path)).text
    markdown = (tmp_path / "report.md").read_text()
    for text in (html, markdown):
        assert "What was forgotten" in text
        assert "What earlier runs recommended" in text
        assert "not tried" in text
        assert f"{tried.last_loss:.4f} after {tried.steps} steps" in text
        assert "+0.3000" in text
        assert "0.2050" in text
    assert "<b>my" not in markdown
    assert "my</b> texts" in html
    plain = html_of(facts, tmp_path)
    assert "What was forgotten" not in plain
    assert "earlier runs" not in plain


@pytest.mark.parametrize(
    ("ours", "task", "words"),
    [
        (
            0.1,
            0.0,
            "it forgets less, and as no difference was shown on the task it is the one to choose",
        ),
        (0.1, -0.2, "it forgets less."),
        (0.9, 0.0, "it forgets more, and as no difference was shown on the task full depth is the one"),
        (0.5, 0.0, "neither stays closer to the base beyond noise"),
    ],
)
def test_the_verdict_says_who_forgets_less(ours: float, task: float, words: str) -> None:
    facts = plausible_facts()
    losses = [0.5 + 0.05 * (-1) ** place for place in range(40)]
    kept = {"base": 0.0, "full_depth": 0.5, "winner": ours}
    arms = tuple(
        ArmScores(
            arm=name,
            examples=tuple(
                ExampleScore(
                    loss=loss
                    + (task if name == "winner" else 0.0)
                    + (0.01 if place % 3 else -0.02) * (name == "winner"),
                    supervised_tokens=3,
                )
                for place, loss in enumerate(losses)
            ),
            retention=Retention(
                losses=(1.0, 1.1, 1.2),
                divergences=(0.0,) * 3 if name == "base" else (far, far + 0.01 * (name == "winner"), far - 0.01),
            ),
        )
        for name, far in kept.items()
    )
    evaluation = Evaluation(arms=arms, comparisons=compare(arms), retention_texts="texts")
    said = forgetting_words(facts.winner, evaluation)
    assert words in said
    assert "On 3 texts away from the task (texts)" in said
    assert verdict(facts.winner, evaluation).endswith(said)
    assert forgetting_words(facts.winner, facts.evaluation) == ""


def layers(*ends: tuple[int, int]) -> dict[str, object]:
    return {"bands": tuple(Band(start=start, stop=stop) for start, stop in ends)}


@pytest.mark.parametrize(
    ("where", "subject"),
    [
        (layers((3, 4)), "LoRA on layer 3"),
        (layers((4, 8)), "LoRA on layers 4–7"),
        (layers((0, 1), (7, 10)), "LoRA on layers 0 and 7–9"),
        (layers((0, 10)) | {"rank": 4}, "LoRA on all layers at rank 4"),
        (layers((0, 10)) | {"rank": 4, "targets": ("mlp",)}, "LoRA on all layers at rank 4 on mlp"),
    ],
)
@pytest.mark.parametrize(
    ("gain", "choice", "sentence"),
    [
        (
            -0.02,
            Choice.BEATS_BASELINE,
            "{} beats tuned full-depth LoRA with 2 % of full depth's parameters. Test loss ",
        ),
        (-0.02, Choice.SMALLEST_WITHIN_NOISE, "{} is handed over, with 2 % of full depth's parameters: the smallest "),
        (0.02, Choice.BEATS_BASELINE, "{} kept up with tuned full-depth LoRA on validation with 2 % of full depth's"),
        (
            0.001,
            Choice.CLOSEST_WITHIN_NOISE,
            "No candidate beats tuned full-depth LoRA beyond noise. {} is handed over, with 2 % of full depth's "
            "parameters: the candidate within noise that stays closest to the base. Test loss ",
        ),
        (
            0.001,
            Choice.BEATS_BASELINE,
            "No candidate beats tuned full-depth LoRA beyond noise. {} is handed over, with 2 % of full depth's "
            "parameters: it led on validation, but not beyond noise on the test split. Test loss ",
        ),
    ],
)
def test_the_verdict_is_a_sentence_wherever_the_winner_sits(
    where: dict[str, object], subject: str, gain: float, choice: Choice, sentence: str
) -> None:
    facts = plausible_facts(gain=gain)
    update = {
        "candidate": facts.winner.baseline.model_copy(update=where),
        "trainable_parameters": facts.winner.baseline_parameters // 50,
        "choice": choice,
    }
    said = verdict(facts.winner.model_copy(update=update), facts.evaluation)
    assert said.startswith(sentence.format(subject))


@pytest.mark.parametrize("metric", Metric)
def test_better_is_lower_for_all_but_exact_match(metric: Metric) -> None:
    below = Interval(mean=-0.2, low=-0.3, high=-0.1)
    row = difference_row(Comparison(arm=Arm.WINNER, reference=Arm.FULL_DEPTH, metric=metric, difference=below))
    assert row.meaning == ("worse" if metric is Metric.EXACT_MATCH else "better")
    assert f'class="{"bad" if metric is Metric.EXACT_MATCH else "good"}"' in row.drawing
