"""Floor 2: held-out scores, paired differences, and the one door to lm-eval."""
