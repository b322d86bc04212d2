"""From samples to clean and reference log-probs of every answer token."""
