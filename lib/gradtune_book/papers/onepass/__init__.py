"""The OnePass paper: eight regression sets, its sensitivity, its horizons, on tables and on small images.

May import the library and the book's rooms below `papers`. Another paper's studies do not belong here.
"""
