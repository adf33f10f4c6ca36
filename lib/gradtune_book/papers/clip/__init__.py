"""The Clip paper: a quadratic toy, the weight decay of a net on MNIST, the keep probability of a language model.

May import the library and the book's rooms below `papers`. Another paper's studies do not belong here.
"""
