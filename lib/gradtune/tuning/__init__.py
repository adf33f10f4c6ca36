"""What a user calls: `tune`, `Tuner` and the history of a training, on any module and data.

May import every other room of the library. Does not belong here: anything that a study of the book needs alone.
"""
