"""The generated pages of the book and its build.

May import everything of the book but the registry of the studies (`papers`) and the command line. Does not belong here:
any number.
"""
