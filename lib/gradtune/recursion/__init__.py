"""The recursion: hyperparameters, their coordinates, update rules, one step with its derivatives, outer rules.

May import `nets` and what is below it. Does not belong here: how a hypergradient is estimated, or a loop.
"""
