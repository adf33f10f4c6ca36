"""The book on the library `gradtune`: five papers recomputed. Part of a checkout, never of a wheel.

May import the library, which imports nothing of it. Does not belong here: what a user's own training needs.
"""
