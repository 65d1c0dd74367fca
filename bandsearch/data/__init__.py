"""Data sets: read, recognised, split, written out by a template and encoded with a mask of what is to be learned."""
