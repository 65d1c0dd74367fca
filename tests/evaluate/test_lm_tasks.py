"""The one door to lm-eval: the tasks that come with the embedded model, and how mistakes are told."""

from pathlib import Path

import pytest

import bandsearch.demo
from bandsearch.demo.lm_eval.documents import DOCUMENTS, documents
from bandsearch.demo.tasks import TASKS, rows
from bandsearch.evaluate.lm_tasks import BUNDLED, check_tasks, run_tasks
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
    scores = run_tasks(model, tokenizer, ("demo_two_step", "demo_swap"), None, 8)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert set(scores) == {"demo_two_step/exact_match", "demo_swap/exact_match"}
    assert all(score <= 0.25 for score in scores.values())


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
