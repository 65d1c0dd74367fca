"""Floor 5: parses, calls one function, prints. Heavy imports stay inside the commands, so that --help is quick."""
