"""What a user calls: `tune`, `Tuner` and the history of a training, on any module and data.

This package may import every other package of the library. What only a study of the book needs does not belong here.
"""
