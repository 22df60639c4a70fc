"""Files that are written atomically, checksummed and locked; checkpoints, canonical settings and time budgets."""
