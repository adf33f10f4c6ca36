"""The one-pass loop, restarts, traced steps, checkpoints, and MetaOptimize in full.

May import `estimators`, `recursion` and what is below them. Does not belong here: a user's module or data.
"""
