"""Does the search find the best band? Exhaustive tables of the demo tasks, and searches replayed on them."""
