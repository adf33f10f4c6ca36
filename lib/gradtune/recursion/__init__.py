"""The recursion: hyperparameters, their coordinates, update rules, one step with its derivatives, outer rules.

It may import `nets` and what is below that. How a hypergradient is estimated and the training loops do not belong here.
"""
