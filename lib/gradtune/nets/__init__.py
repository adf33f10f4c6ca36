"""From a module to losses of R runs on flat weights; lean second derivatives; compiled operations; networks.

May import `errors`, `variables` and `extras`. Does not belong here: anything that knows of hyperparameters or steps.
"""
