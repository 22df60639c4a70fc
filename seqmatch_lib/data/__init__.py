"""Real data sets: where their files lie, how they are read, checked, split and made into tensors."""
