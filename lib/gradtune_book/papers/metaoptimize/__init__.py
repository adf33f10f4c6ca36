"""The MetaOptimize paper: its framework on toys, continual and stationary training, a language model, and the cost.

May import the library and the book's rooms below `papers`. Another paper's studies do not belong here.
"""
