"""All methods together: studies that are no one paper's, and compare what the papers propose.

May import the library and the book's rooms below `papers`. Does not belong here: what recomputes a number of a paper.
"""
