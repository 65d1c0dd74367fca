"""Models from the hub or from disk: names, families, loading."""
