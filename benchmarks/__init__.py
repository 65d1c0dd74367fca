"""What the engine and the search gain over today's practice, measured on this machine."""
