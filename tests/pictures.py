"""A set of images for the tests of the book's tasks."""

from torch import Tensor

from gradtune_book.tasks.images import Images


def training_images(x: Tensor, y: Tensor) -> Images:
    """A set of images that all train."""
    none = x[:0], y[:0]
    return Images(x, y, *none, *none, "made here", "none", "")
