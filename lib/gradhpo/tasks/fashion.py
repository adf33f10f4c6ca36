"""Classification of small grey images with a one-hidden-layer net in mini-batches (OnePass, Section 4.2):
Fashion-MNIST, MNIST in its place, or scikit-learn's digits, which need no file."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradhpo import download, paths
from gradhpo.errors import GradhpoError, unknown
from gradhpo.modules import Layout, batched
from gradhpo.nets import mlp

FOLDERS = {"fashion": "FashionMNIST/raw", "mnist": "MNIST/raw"}
"""Where torchvision puts the files, below the data root."""

CAPTIONS = {
    "fashion": "Fashion-MNIST, 70000 images",
    "mnist": "MNIST in place of Fashion-MNIST, 70000 images",
    "digits": "scikit-learn's digits in place of Fashion-MNIST, 1797 images",
}
_CLASSES = {"fashion": "FashionMNIST", "mnist": "MNIST"}
_VALIDATION = {"fashion": 10_000, "mnist": 10_000, "digits": 300}
_TEST_DIGITS = 300
_PIXELS, _LABELS = 0x803, 0x801  # magic numbers of the IDX format: bytes in three dimensions, in one


@dataclass(frozen=True)
class Images:
    """Standardised pixels `x_* [N, F]` and class numbers `y_* [N]`."""

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    name: str
    sha256: str

    def merged(self) -> Images:
        """The same set with the validation images among the training images."""
        x, y = torch.cat([self.x_train, self.x_val]), torch.cat([self.y_train, self.y_val])
        return Images(x, y, self.x_val, self.y_val, self.x_test, self.y_test, self.name, self.sha256)


def present(name: str) -> bool:
    """Whether a set's files are there."""
    return name == "digits" or _file(name, "train-images-idx3-ubyte") is not None


def resolve(data: str) -> str:
    """The set that is used: "auto" is Fashion-MNIST where it is, else MNIST, else the digits; "embedded" the digits.
    Raises GradhpoError for an unknown name, and for a set asked for by name that is absent."""
    if data not in (*CAPTIONS, "auto", "embedded"):
        raise unknown("set of images", data, [*CAPTIONS, "auto", "embedded"])
    if data == "auto":
        return next(name for name in CAPTIONS if present(name))
    name = "digits" if data == "embedded" else data
    if not present(name):
        raise GradhpoError(
            f"{_CLASSES[name]} is not in {paths.data_root()}; run torchvision.datasets.{_CLASSES[name]}(that folder, "
            "download=True) once with a network, point GRADHPO_DATA at a folder that has it, or ask for data='embedded'"
        )
    return name


def load(name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Images:
    """A set by name. Its test images are the set's own (the digits: the last 300); the last 10,000 (digits: 300) of the
    others validate. Pixels are standardised by mean and standard deviation of all training and validation pixels."""
    name = resolve(name)
    (x, y), (x_test, y_test), digest = _digits() if name == "digits" else _idx(name)
    cut = len(x) - _VALIDATION[name]
    mean, std = x.mean(dtype=np.float64), x.std(dtype=np.float64)

    def ready(pixels: np.ndarray, classes: np.ndarray) -> tuple[Tensor, Tensor]:
        scaled = torch.as_tensor((pixels - mean) / std, dtype=dtype, device=device)
        return scaled, torch.as_tensor(classes.astype(np.int64), device=device)

    train, val, test = ready(x[:cut], y[:cut]), ready(x[cut:], y[cut:]), ready(x_test, y_test)
    return Images(*train, *val, *test, name, digest)


Rows = tuple[np.ndarray, np.ndarray]


def _digits() -> tuple[Rows, Rows, str]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    digest = download.digest(x.astype("<f8").tobytes() + y.astype("<i8").tobytes())
    return (x[:-_TEST_DIGITS], y[:-_TEST_DIGITS]), (x[-_TEST_DIGITS:], y[-_TEST_DIGITS:]), digest


def _idx(name: str) -> tuple[Rows, Rows, str]:
    parts, digests = [], []
    for part in ("train", "t10k"):
        pixels, first = _read(name, f"{part}-images-idx3-ubyte", _PIXELS)
        labels, second = _read(name, f"{part}-labels-idx1-ubyte", _LABELS)
        parts.append((pixels.reshape(len(pixels), -1).astype(np.float32), labels))
        digests += [first, second]
    return parts[0], parts[1], download.digest("\n".join(digests).encode())


def _file(name: str, stem: str) -> Path | None:
    folder = paths.data_root() / FOLDERS[name]
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _read(name: str, stem: str, magic: int) -> tuple[np.ndarray, str]:
    """One IDX file, plain or compressed, and the digest of its plain content."""
    path = _file(name, stem)
    again = f"run torchvision.datasets.{_CLASSES[name]}({str(paths.data_root())!r}, download=True) to get it again"
    if path is None:
        raise GradhpoError(f"{stem} is missing in {paths.data_root() / FOLDERS[name]}; {again}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        head = np.frombuffer(content, dtype=">u4", count=4 if magic == _PIXELS else 2)
        shape = tuple(int(n) for n in head[1:])
        if head[0] != magic or len(content) != head.nbytes + int(np.prod(shape)):
            raise ValueError("not the announced size")
    except (OSError, EOFError, ValueError) as error:
        raise GradhpoError(f"{path} is truncated or no IDX file ({error}); {again}") from error
    return np.frombuffer(content, dtype=np.uint8, offset=head.nbytes).reshape(shape), download.digest(content)


class Classification:
    """Cross-entropy of R nets F - hidden - 10 on mini-batches.

    Batch t is the same for all runs: rows of an order drawn anew for every epoch from `order_seed`. Validation batch t
    goes through the validation rows in order, so that an update sees as many rows of either kind.
    """

    stationary = False

    def __init__(self, images: Images, hidden: int = 50, batch: int = 50, order_seed: int = 0) -> None:
        self.images, self.batch, self.order_seed = images, batch, order_seed
        self._sizes = [images.x_train.shape[1], hidden, 10]
        self.layout = Layout.of(mlp(self._sizes))
        self._loss = batched(mlp(self._sizes).to(images.x_train), cross_entropy)
        self._wrong = batched(mlp(self._sizes).to(images.x_train), _error)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Initial weights `[R, D]`, one row a seed, torch's default initialisation drawn on the CPU in float32."""
        rows = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                rows.append(self.layout.flatten(dict(mlp(self._sizes).named_parameters())))
        return torch.stack(rows).to(self.images.x_train)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int = 0) -> Tensor:
        rows = self._rows(t)
        return self._loss(w, self.images.x_train[rows], self.images.y_train[rows])

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int = 0) -> Tensor:
        batches = max(1, len(self.images.x_val) // self.batch)
        rows = slice(t % batches * self.batch, (t % batches + 1) * self.batch)
        return self._loss(w, self.images.x_val[rows], self.images.y_val[rows])

    def _rows(self, t: int) -> Tensor:
        batches = max(1, len(self.images.x_train) // self.batch)
        epoch, k = divmod(t, batches)
        if self._order[0] != epoch:
            drawn = np.random.default_rng([self.order_seed, epoch]).permutation(len(self.images.x_train))
            self._order = (epoch, torch.from_numpy(drawn).to(self.images.x_train.device))
        return self._order[1][k * self.batch : (k + 1) * self.batch]

    @torch.no_grad()
    def test(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and share of wrong answers on all test images, `[R]` each."""
        x, y = self.images.x_test, self.images.y_test
        return self._loss(w, x, y), self._wrong(w, x, y)

    @torch.no_grad()
    def validation(self, w: Tensor) -> Tensor:
        """Cross-entropy on all validation images, `[R]`."""
        return self._loss(w, self.images.x_val, self.images.y_val)


def _error(output: Tensor, y: Tensor) -> Tensor:
    return (output.argmax(-1) != y).to(output.dtype).mean()
