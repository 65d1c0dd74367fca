"""Floor 2: what a short look at a model and a data set says about where an adapter should sit."""
