"""Scores, selections and trained models to repositories of the Hugging Face hub."""
