"""How much of the base model an arm has kept."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.value import Value


class Retention(Value):
    """An arm on texts of the base's own kind, one entry per text, in the same order for every arm.

    Loss on such text is how LoRA's forgetting is measured in arXiv 2405.09673. The divergence of a token is
    KL(base || arm) = sum over the vocabulary of p_base (log p_base - log p_arm), both given the same tokens before it
    (Kullback and Leibler 1951): it also sees what has moved without making the text less likely.
    """

    losses: tuple[float, ...] = Field(min_length=1, description="mean nats per predicted token")
    divergences: tuple[float, ...] = Field(min_length=1, description="mean nats per predicted token; 0 for the base")

    @property
    def loss(self) -> float:
        """Mean over texts, so that every text weighs the same, as in the paired bootstrap."""
        return sum(self.losses) / len(self.losses)

    @property
    def divergence(self) -> float:
        """Mean over texts."""
        return sum(self.divergences) / len(self.divergences)
