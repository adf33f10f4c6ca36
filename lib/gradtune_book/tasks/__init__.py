"""Problems to train on: each offers batched training and validation losses (`step.Problem`) and its own test metric.

May import `data` and the library. Does not belong here: what a paper trains on it, and how long.
"""
