"""Evidence: what a study is, one line a run, the recorder and its workers, verification, environment.

May import the library and, of the book, `config` and `paths`. Does not belong here: any study, and what a number means.
"""

from gradtune_book.records.store import Result, coverage, load, provenance, so_far

__all__ = ["Result", "coverage", "load", "provenance", "so_far"]
