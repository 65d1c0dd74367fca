"""Adapters: from a candidate to PEFT and back, export, verification, serving."""
