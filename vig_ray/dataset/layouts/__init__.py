"""Layouts: which columns a dataset's rows have, and how a row becomes a sample."""
