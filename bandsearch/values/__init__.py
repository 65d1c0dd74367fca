"""Floor 0: the values that pass between stages. No torch, no ray, no files but the ledger's."""
