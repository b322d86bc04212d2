"""vig-ray: visual information gain for vision-language datasets, on one machine or a Ray cluster."""

__version__ = "0.1.0"
