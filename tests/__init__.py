"""All tests. vig_ray comes before transformers, whose image code needs torchvision to be importable."""

import vig_ray  # noqa: F401
