"""The OHO paper: one training against many, a learning rate for every layer, and the dynamics of the recursion.

May import the library and the book's rooms below `papers`. Another paper's studies do not belong here.
"""
