"""The generated pages of the book and its build.

May import everything of the book but the command line. Does not belong here: any number.
"""
