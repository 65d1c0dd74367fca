"""Scores of arms: when an answer is right, and differences over the examples both arms were scored on."""

import pytest

from bandsearch.evaluate.answers import final_answer, is_right
from bandsearch.evaluate.arms import compare, score_arm
from bandsearch.values.evaluation import ArmScores, ExampleScore


@pytest.mark.parametrize(
    ("generated", "reference", "right"),
    [
        ("3 + 4 = 7 #### 7", "4 + 3 = 7 #### 7", True),
        ("#### 1,234.50", "so it is #### 1234.5", True),
        ("#### +7", "#### 7", True),
        ("#### 70", "#### 7", False),
        ("7", "3 + 4 = 7 #### 7", False),
        ("so #### $12 in all", "#### 12", True),
        (" forty  two\n", "forty two", True),
        ("forty two and", "forty two", False),
        ("", "x", False),
        ("", "", False),
        ("<think>\n\n</think>\n\nYes", "Yes", True),
        ("<think>4 + 3 #### 8? </think> #### 7", "<think>so</think>#### 7", True),
        ("<think>#### 7</think>8", "#### 7", False),
        ("Yes", "<think>x</think> Yes", True),
        ("", "<think>x</think>", False),
    ],
)
def test_when_an_answer_is_right(generated: str, reference: str, right: bool) -> None:
    assert is_right(generated, reference) is right


def test_what_stands_behind_the_last_mark_counts() -> None:
    assert final_answer("#### 3 then #### -4") == "-4"


def arm(
    name: str, losses: list[float], correct: list[bool | None], tokens: int = 3, groups: list[int | None] | None = None
) -> ArmScores:
    return ArmScores(
        arm=name,
        examples=tuple(
            ExampleScore(
                loss=loss,
                supervised_tokens=tokens + place,
                group=None if groups is None else groups[place],
                correct=right,
                generated=None if right is None else "x",
            )
            for place, (loss, right) in enumerate(zip(losses, correct, strict=True))
        ),
    )


def test_differences_are_paired_over_what_both_arms_have() -> None:
    ours = arm("winner", [1.0, 2.0, 3.0], [True, True, None])
    theirs = arm("full_depth", [1.5, 2.5, 3.5, 99.0], [False, True, True, True])
    loss, exact = compare((ours, theirs), pairs=(("winner", "full_depth"),))
    assert (loss.metric, exact.metric) == ("loss", "exact_match")
    # The same difference everywhere leaves no doubt.
    assert (loss.difference.mean, loss.difference.low, loss.difference.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert exact.difference.mean == pytest.approx(0.5)


def test_plain_text_has_no_exact_match() -> None:
    ours, theirs = (arm(name, [1.0, 2.0], [None, None]) for name in ("winner", "full_depth"))
    assert [found.metric for found in compare((ours, theirs), pairs=(("winner", "full_depth"),))] == ["loss"]


class ScriptedEngine:
    """Three test examples with the answers a, b, c."""

    class dataset:  # noqa: N801
        test = tuple(
            type("Example", (), {"answer": answer, "group": len(answer) // 2})() for answer in ("a", "bb", "cc")
        )

    def losses(self, split: str, session: str | None, limit: int) -> list[tuple[float, int]]:
        assert split == "test"
        return [(0.5, 2), (0.25, 2), (1.0, 1)][:limit]

    def generate(self, split: str, session: str | None, limit: int) -> list[str]:
        assert split == "test"
        return ["a", "x", "cc"][:limit]


def test_what_was_not_generated_is_neither_right_nor_wrong() -> None:
    scores = score_arm(ScriptedEngine(), None, "base", test_examples=3, generated_examples=2)  # type: ignore[arg-type]
    assert [example.correct for example in scores.examples] == [True, False, None]
    assert scores.exact_match == 0.5
    assert scores.loss == pytest.approx((2 * 0.5 + 2 * 0.25 + 1.0) / 5)


def test_examples_that_ask_the_same_are_named() -> None:
    scores = score_arm(ScriptedEngine(), None, "base", test_examples=3, generated_examples=0)  # type: ignore[arg-type]
    first, second, third = (example.group for example in scores.examples)
    assert first is None
    assert second is not None
    assert second == third
    assert scores.questions == 2


def test_a_difference_of_losses_is_that_of_the_losses_shown() -> None:
    """Long answers weigh more in both, as they do in training."""
    ours = arm("winner", [1.0, 2.0, 0.1], [None] * 3, tokens=1)
    theirs = arm("full_depth", [1.1, 1.0, 0.3], [None] * 3, tokens=1)
    (loss,) = compare((ours, theirs), pairs=(("winner", "full_depth"),))
    assert loss.difference.mean == pytest.approx(ours.loss - theirs.loss)


def test_many_answers_to_one_question_are_one_example() -> None:
    losses = [0.1 * (-1) ** place + 0.02 for place in range(40)]
    alone, grouped = (
        compare(
            (arm("winner", losses, [True] * 40, groups=groups), arm("full_depth", [0.0] * 40, [False] * 40)),
            pairs=(("winner", "full_depth"),),
        )
        for groups in (None, [7] * 40)
    )
    assert [found.difference.excludes_zero for found in alone] == [False, True]
    assert not any(found.difference.excludes_zero for found in grouped)
