"""lm-eval tasks that come with the embedded model; `documents` writes their questions."""
