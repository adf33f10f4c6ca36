"""The FDS paper: noise of per-step hypergradients, learning rate schedules, regret on CIFAR-10.

May import the library and the book's rooms below `papers`. Another paper's studies do not belong here.
"""
