"""vig-ray: visual information gain for vision-language datasets, on one machine or a Ray cluster."""

from vig_ray.compat import quiet, scikit_learn, torchvision

__version__ = "0.1.0"

torchvision.make_importable()
scikit_learn.import_when_called()
quiet.be_quiet()
