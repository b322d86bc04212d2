"""IFD, a baseline of VisNec: the top r % of all samples by instruction-following difficulty.

Li et al., arXiv 2308.12032: L(A | Q) / L(A), the loss of an answer with its instruction (here with the image, too)
over its loss alone. Samples above 1, whose instruction makes the answer harder, are left out first, as by its authors'
script. Superfiltering (Li et al., arXiv 2402.00530) has the ratio of perplexities: exp of the losses' difference.
"""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy("ifd", "top r % by IFD, those up to 1", "ifd", "r", positive=True, scored="clean_loss")
