"""The embedded default: a small decoder, the text it was pre-trained on, and the tasks it can be tuned to."""
