"""How much of an accelerator's memory one pass may ask for, as far as that is known."""

from __future__ import annotations

import math

# Passes without trouble before more is tried than memory is known to have room for.
PATIENCE = 16


class Room:
    """The most that may be asked for at a time: anything, until memory has not done for as much.

    Memory may have been lacking for a moment only, for what somebody else had on the device. So after some passes
    without trouble twice as much may be asked for. Where that is too much, it is as before at once, and the next try
    waits for twice as many passes: a real limit is hit a few times, and then hardly ever.
    """

    def __init__(self) -> None:
        self.most: float = math.inf
        # `most` before the try that is under way, or itself; and the largest that has fitted.
        self._settled, self._largest = self.most, 0
        # Passes that a try waits for, and those since anything changed.
        self._patience, self._quiet = PATIENCE, 0

    def fitted(self, amount: int) -> None:
        """A pass asked for `amount`, and had it."""
        self._largest = max(self._largest, amount)
        self._quiet += 1
        if self._settled < self.most:
            if amount > self._settled:
                self._settled, self._quiet = self.most, 0
                self._patience = max(PATIENCE, self._patience // 2)
        elif self._quiet >= self._patience:
            self.most, self._quiet = 2 * self.most, 0

    def lacked(self, amount: int, less: int) -> None:
        """A pass asked for `amount`, and there was not as much. From now on it is what has fitted, or `less` of which
        that is not known."""
        if amount <= self._largest:
            self._largest = 0
        self.most = self._settled = min(self._settled, max(self._largest, less))
        self._patience, self._quiet = 2 * self._patience, 0
