"""The one door to lm-eval: the tasks that come with the embedded model, and how mistakes are told."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bandsearch.demo
from bandsearch.demo.lm_eval.documents import DOCUMENTS, documents
from bandsearch.demo.tasks import TASKS, rows
from bandsearch.evaluate import lm_tasks
from bandsearch.evaluate.lm_tasks import BUNDLED, FIRST_DOCUMENTS, check_tasks, run_tasks
from bandsearch.values.errors import UsageError

GRADED = [name for name, task in TASKS.items() if not task.control]


@pytest.mark.parametrize("task", GRADED)
def test_no_document_is_in_the_data_set(task: str) -> None:
    asked = documents(task, version=1.0)["test"]["prompt"]
    assert len(set(asked)) == len(asked) == DOCUMENTS
    assert not set(asked) & {row["prompt"] for row in rows(task)}


def test_every_task_with_right_answers_is_bundled() -> None:
    assert {file.stem for file in BUNDLED.glob("demo_*.yaml")} == {f"demo_{name}" for name in GRADED}


def test_the_base_is_scored_on_a_bundled_task_without_a_network_and_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    home = Path(bandsearch.demo.__file__).parent / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(home), AutoTokenizer.from_pretrained(home)
    capfd.readouterr()
    scores = run_tasks(model, tokenizer, ("demo_two_step", "demo_swap"), None, 8).metrics
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert set(scores) == {"demo_two_step/exact_match", "demo_swap/exact_match"}
    assert all(score <= 0.25 for score in scores.values())


def test_a_deadline_reads_fewer_documents_and_says_how_many() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    home = Path(bandsearch.demo.__file__).parent / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(home), AutoTokenizer.from_pretrained(home)
    hurried = run_tasks(model, tokenizer, ("demo_two_step", "demo_swap"), None, None, seconds=0.0)
    assert hurried.cut == {"demo_two_step": FIRST_DOCUMENTS, "demo_swap": FIRST_DOCUMENTS}
    assert set(hurried.metrics) == {"demo_two_step/exact_match", "demo_swap/exact_match"}
    assert run_tasks(model, tokenizer, ("demo_swap",), None, 3, seconds=0.0).cut == {}


class Reading:
    """Documents that take `each` seconds after `fixed`, on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int, fixed: float, each: float) -> None:
        self.now, self.counts, self.size, self.fixed, self.each = 0.0, [], size, fixed, each
        monkeypatch.setattr(lm_tasks, "time", self)

    def monotonic(self) -> float:
        return self.now

    def __call__(self, count: int) -> dict[str, Any]:
        count = min(count, self.size)
        self.counts.append(count)
        self.now += self.fixed + self.each * count
        return {"n-samples": {"mine": {"original": self.size, "effective": count}}}


@given(
    size=st.integers(1, 5000),
    fixed=st.floats(0, 20),
    each=st.floats(0.001, 5),
    seconds=st.floats(0, 3600),
    limit=st.none() | st.integers(1, 3000),
)
def test_as_many_documents_are_read_as_fit(
    size: int, fixed: float, each: float, seconds: float, limit: int | None
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        reading = Reading(monkeypatch, size, fixed, each)
        _, cut = lm_tasks._read_for(seconds, limit, reading)
    wanted = size if limit is None else min(size, limit)
    assert reading.counts[-1] == wanted if cut is None else reading.counts[-1] == cut < wanted
    assert reading.now <= max(seconds, fixed + each * FIRST_DOCUMENTS) + 1e-6
    if cut is not None:
        assert cut % FIRST_DOCUMENTS == 0
        # Twice as many would not have fitted behind it.
        assert reading.now + 2 * lm_tasks.MARGIN * (fixed + each * cut) >= seconds


def test_a_task_of_ones_own_is_found_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "3 + 4 =", "answer": "7"}\n' * 4)
    (tmp_path / "sums.yaml").write_text(
        "task: my_sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    check_tasks(("my_sums", "demo_swap"), str(tmp_path))


def test_an_unknown_task_is_refused_with_what_is_close() -> None:
    with pytest.raises(UsageError, match="demo_swap"):
        check_tasks(("demo_swaq",), None)
