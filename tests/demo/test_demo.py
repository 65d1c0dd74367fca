"""The embedded model: small, plain to load, and its tasks and corpus say what is true."""

import itertools
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bandsearch.demo
from bandsearch.demo.corpus import ONES, SKILLS, TENS, number_word, pairs
from bandsearch.demo.tasks import TASKS, rows
from bandsearch.values.errors import UsageError

MODEL = Path(bandsearch.demo.__file__).parent / "model"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def test_it_is_small_and_can_be_served(model) -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 8 * 2**20
    config = model.config
    assert (config.hidden_size // config.num_attention_heads) % 32 == 0


@given(st.text())
def test_the_tokenizer_gives_any_text_back(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_knows_its_ends_and_keeps_digits_apart(tokenizer) -> None:
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert len(tokenizer("4711")["input_ids"]) == 4
    chat = [{"role": "user", "content": "3 + 4 ="}, {"role": "assistant", "content": "7"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == f"3 + 4 = 7{tokenizer.eos_token}"


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_different_short_and_the_same_every_time(tokenizer, task: str) -> None:
    made = rows(task, 300)
    assert made == rows(task, 300)
    assert made[:100] == rows(task, 100)
    assert len({row["prompt"] for row in made}) == 300
    assert max(len(tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"]) for row in made) <= 96


def value(words: str) -> int:
    tens, _, ones = words.rpartition(" ")
    return (10 * TENS.index(tens) if tens else 0) + (ONES.index(ones) if ones in ONES else 10 * TENS.index(ones))


def test_the_answers_of_the_tasks_are_right() -> None:
    for row in rows("two_step", 200):
        start, gained, lost = map(int, re.findall(r"\d+", row["prompt"]))
        assert row["completion"].endswith(f"#### {start + gained - lost}")
        assert start + gained - lost > 0
    for row in rows("words", 200):
        assert value(row["completion"]) == sum(map(int, re.findall(r"\d+", row["prompt"])))
    for row in rows("symbol", 200):
        left, right = map(int, re.findall(r"\d+", row["prompt"]))
        assert int(row["completion"]) == (left + right if "@" in row["prompt"] else left - right)
    for row in rows("larger_plus", 200):
        first, second, added = map(int, re.findall(r"\d+", row["prompt"]))
        assert int(row["completion"]) == max(first, second) + added
    for row in rows("swap", 200):
        letters = row["prompt"].removeprefix("swap: ").removesuffix(" ->").split()
        answer = row["completion"].split()
        assert (answer[0], answer[-1], answer[1:-1]) == (letters[-1], letters[0], letters[1:-1])
    assert 60 < sum(row["completion"] == "red" for row in rows("toss", 200)) < 140


def test_an_unknown_task_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="two_step"):
        rows("poetry")


def test_the_answers_of_the_corpus_are_right() -> None:
    source = random.Random(7)
    signs = {"+": "+", "plus": "+", "-": "-", "minus": "-", "*": "*", "times": "*"}
    for _ in range(300):
        prompt, answer = SKILLS["arithmetic"].write(source)
        left, sign, right = re.search(r"(\d+) ?(\+|-|\*|plus|minus|times) ?(\d+)", prompt).groups()
        assert int(answer) == eval(f"{left} {signs[sign]} {right}")
        prompt, answer = SKILLS["word_problem"].write(source)
        first, second = map(int, re.findall(r"\d+", prompt))
        assert int(answer) == (first + second if "gets" in prompt else first - second)
        prompt, answer = SKILLS["chain"].write(source)
        start, change = map(int, re.findall(r"\d+", prompt))
        assert int(answer) == (start + change if "+" in prompt else start - change)
        prompt, answer = SKILLS["lookup"].write(source)
        listed, asked = prompt.rsplit(". ", 1)
        assert int(answer) == int(dict(re.findall(r"(\w): (\d+)", listed))[asked[0]])
        prompt, answer = SKILLS["counting"].write(source)
        numbers = [int(number) for number in re.findall(r"\d+", prompt + answer)]
        assert len({b - a for a, b in itertools.pairwise(numbers)}) == 1
        prompt, answer = SKILLS["compare"].write(source)
        pick = max if "larger" in prompt else min
        assert int(answer) == pick(map(int, re.findall(r"\d+", prompt)))


@given(st.integers(0, 99))
def test_numbers_in_words_read_back(number: int) -> None:
    assert value(number_word(number)) == number


def test_the_corpus_repeats_itself_for_a_seed() -> None:
    one, two = pairs(5), pairs(5)
    assert [next(one) for _ in range(50)] == [next(two) for _ in range(50)]


def test_the_base_does_what_it_was_trained_on_and_none_of_the_tasks(model, tokenizer) -> None:
    tokenizer.padding_side = "left"

    def right(asked: list[tuple[str, str]]) -> float:
        batch = tokenizer([prompt for prompt, _ in asked], return_tensors="pt", padding=True)
        with torch.no_grad():
            output = model.generate(**batch, max_new_tokens=32, do_sample=False)
        given = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return sum(g.strip() == a.strip() for g, (_, a) in zip(given, asked, strict=True)) / len(asked)

    source = random.Random(3)
    assert right([SKILLS["arithmetic"].write(source) for _ in range(50)]) > 0.8
    for task in TASKS:
        assert right([(row["prompt"], row["completion"]) for row in rows(task, 40, seed=2)]) <= 0.1, task
