"""Training on what was selected."""
