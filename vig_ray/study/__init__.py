"""Whole experiments: the stages of a grid as one graph, run side by side, and what their numbers say."""
