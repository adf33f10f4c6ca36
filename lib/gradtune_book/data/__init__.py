"""Datasets: where they are, what their files must be, how they are fetched and read.

A module here may import `paths` and the library's `errors`. Nets, losses, and a split that one paper makes do not
belong here.
"""
