"""Datasets: where they are, what their files must be, how they are fetched and read.

May import `paths` and the library's `errors`. Does not belong here: nets, losses, or a split that one paper makes.
"""
