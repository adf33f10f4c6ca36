"""What notebooks need: the driver around papermill, parameters, figures, plots, statistics.

May import `data`, `records` and what is below them. Does not belong here: what only one paper draws or counts.
"""
