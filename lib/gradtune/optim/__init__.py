"""MetaOptimize as an optimiser like those of `torch.optim`, for a model and a loop of one's own.

May import `recursion` and what is below it. Does not belong here: anything that needs a Hessian product.
"""

from gradtune.optim.metaoptimize import MetaOptimize

__all__ = ["MetaOptimize"]
