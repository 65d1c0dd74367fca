"""Floor 4: the main flow, its plan and its report."""
