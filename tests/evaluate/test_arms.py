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


def arm(name: str, losses: list[float], correct: list[bool | None]) -> ArmScores:
    return ArmScores(
        arm=name,
        examples=tuple(
            ExampleScore(loss=loss, supervised_tokens=3, correct=right, generated=None if right is None else "x")
            for loss, right in zip(losses, correct, strict=True)
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
        test = tuple(type("Example", (), {"answer": answer})() for answer in "abc")

    def losses(self, split: str, session: str | None, limit: int) -> list[tuple[float, int]]:
        assert split == "test"
        return [(0.5, 2), (0.25, 2), (1.0, 1)][:limit]

    def generate(self, split: str, session: str | None, limit: int) -> list[str]:
        assert split == "test"
        return ["a", "x", "c"][:limit]


def test_what_was_not_generated_is_neither_right_nor_wrong() -> None:
    scores = score_arm(ScriptedEngine(), None, "base", test_examples=3, generated_examples=2)  # type: ignore[arg-type]
    assert [example.correct for example in scores.examples] == [True, False, None]
    assert scores.exact_match == 0.5
    assert scores.loss == pytest.approx((0.5 + 0.25 + 1.0) / 3)
