"""Floor 2: warm base models and the one loop that trains adapters on them."""

import os

# Read by Ray as it is imported. Under `uv run` it would build the environment of every engine anew.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
