"""The one door to lm-eval: the tasks that come with the embedded model, and how mistakes are told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bandsearch.demo
from bandsearch.api import specify
from bandsearch.data.dataset import prepare
from bandsearch.demo.lm_eval.documents import DOCUMENTS, documents
from bandsearch.demo.tasks import TASKS, rows
from bandsearch.evaluate import lm_tasks
from bandsearch.evaluate.asking import Asking, asking
from bandsearch.evaluate.lm_tasks import BUNDLED, FIRST_DOCUMENTS, check_tasks, run_tasks, try_tasks
from bandsearch.models.aliases import resolve
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.values.errors import DataError, UsageError

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


def written(folder: Path, task: str, text: str = "{{prompt}}", target: str = "{{answer}}", **more: Any) -> None:
    """A task of one's own, whose data lie beside it; `more` are other fields of its file."""
    (folder / "rows.jsonl").write_text('{"prompt": "3 + 4 =", "answer": "7", "place": 0}\n' * 4)
    fields = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": text,
        "doc_to_target": target,
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / f"{task}.yaml").write_text(json.dumps(fields | more))


def test_a_task_of_ones_own_is_found_in_its_folder(tmp_path: Path) -> None:
    written(tmp_path, "my_sums")
    check_tasks(("my_sums", "demo_swap"), str(tmp_path))


def test_tasks_are_tried_without_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, "my_sums")
    chosen = {"output_type": "multiple_choice", "doc_to_choice": ["7", "8"], "metric_list": [{"metric": "acc"}]}
    written(tmp_path, "my_choice", target="{{place}}", **chosen)
    written(tmp_path, "my_texts", output_type="loglikelihood_rolling", metric_list=[{"metric": "bits_per_byte"}])
    capfd.readouterr()
    try_tasks(("my_sums", "my_choice", "my_texts", "demo_swap"), str(tmp_path))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    try_tasks((), None)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"text": "{{prompt.words}}"}, "words"),
        ({"target": "{{reply.words}}"}, "reply"),
        ({"dataset_kwargs": {"data_files": {"test": "/nowhere/rows.jsonl"}}}, "/nowhere/rows.jsonl"),
        ({"test_split": "tests"}, "tests"),
    ],
)
def test_a_task_that_fails_is_refused_before_anything_is_spent_and_costs_only_itself_later(
    tmp_path: Path, broken: dict[str, Any], reason: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    written(tmp_path, "my_sums", **broken)
    with pytest.raises(DataError, match=rf"^The task my_sums could not be read: .*{reason}.*--task-directory"):
        try_tasks(("demo_swap", "my_sums"), str(tmp_path))
    home = Path(bandsearch.demo.__file__).parent / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(home), AutoTokenizer.from_pretrained(home)
    for seconds in (None, 0.0):
        scores = run_tasks(model, tokenizer, ("my_sums", "demo_swap"), str(tmp_path), 2, seconds)
        assert set(scores.metrics) == {"demo_swap/exact_match"}
        assert set(scores.failures) == {"my_sums"}
        assert reason in scores.failures["my_sums"]
    with pytest.raises(DataError, match="my_sums could not be read"):
        scores.or_raise()


def test_an_unknown_task_is_refused_with_what_is_close() -> None:
    with pytest.raises(UsageError, match="demo_swap"):
        check_tasks(("demo_swaq",), None)


CHATTY = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}<|end|>{% endfor %}"
    "{{ '[assistant]' if add_generation_prompt }}"
)


def test_a_chat_template_writes_documents_and_shots_as_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked: list[tuple[str, dict[str, Any]]] = []

    def answered(self: Any, requests: list[Any], *_: Any, **__: Any) -> list[str]:
        asked.extend(request.args for request in requests)
        return ["7"] * len(requests)

    monkeypatch.setattr(HFLM, "generate_until", answered)
    solved = {"sampler": "first_n", "samples": [{"prompt": "1 + 1 =", "answer": "2"}]}
    written(tmp_path, "my_sums", fewshot_config=solved)
    home = Path(bandsearch.demo.__file__).parent / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(home), AutoTokenizer.from_pretrained(home)
    own = tokenizer.chat_template
    by_chat = Asking(template=CHATTY, stops=(0,), shots=1)
    for form in (by_chat, Asking(shots=1), Asking()):
        scores = run_tasks(model, tokenizer, ("my_sums",), str(tmp_path), 1, asking=form)
        assert (scores.metrics, scores.failures) == ({"my_sums/exact_match": 1.0}, {})
    (chat, settings), (plain, _), (alone, _) = asked
    assert chat == "[user]1 + 1 =<|end|>[assistant]2<|end|>[user]3 + 4 =<|end|>[assistant]"
    assert settings["eos_token_id"] == [0]
    assert plain == "1 + 1 = 2\n\n3 + 4 ="
    assert alone == "3 + 4 ="
    assert tokenizer.chat_template == own


def test_tasks_are_asked_as_the_data_were_written(tmp_path: Path) -> None:
    def asked(template: str | None = None, text: bool = False, **task: Any) -> Asking:
        rows = ({"text": f"Number {n}."} if text else {"prompt": f"{n} + 1 =", "completion": "2"} for n in range(40))
        file = tmp_path / f"{text}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        spec = specify("demo", str(file), trials=1, template=template, **task)
        tokenizer = load_tokenizer(resolve(spec.model))
        if text:
            tokenizer.chat_template = None
        return asking(spec, tokenizer, prepare(spec.data, tokenizer, 0))

    mine = tmp_path / "mine.jinja"
    mine.write_text(CHATTY)
    own = asked()
    assert own.template is not None
    assert "message['content']" in own.template
    assert str(own) == "through the model's chat template"
    assert asked(str(mine)).template == CHATTY
    assert str(asked(str(mine), num_fewshot=2)) == "through the chat template mine.jinja, 2-shot"
    assert asked(task_chat=False).template is None
    assert asked(text=True).template is None
    with pytest.raises(UsageError, match="--template"):
        asked(text=True, task_chat=True)
