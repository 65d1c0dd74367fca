"""Floor 2: warm base models and the one loop that trains adapters on them."""
