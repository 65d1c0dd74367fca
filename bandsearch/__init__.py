"""bandsearch: find the best PEFT adapter for a model and a data set, and the layers where it should sit."""

__version__ = "0.1.0"
