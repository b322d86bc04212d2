"""From scores to what to train on: which samples, which tokens, what weight, in which order."""
