"""Batches of every structure: what fits the weights, what is rows and what a loader, and how a mistake reads."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from gradtune.errors import GradtuneError
from gradtune.nets.draws import number
from gradtune.tuning.batches import common_rows, fits, mapped, moved, named, rows
from gradtune.tuning.streams import Loaded, Resident, steps_of, stream

X, A = torch.arange(40.0).reshape(20, 2), torch.arange(60.0).reshape(20, 3)
Y, INDEX = torch.arange(20), torch.arange(100, 120)
LIKE, HALF = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
Pair = namedtuple("Pair", ["text", "label"])


def made(source: Any, size: int | None = None, **more: Any) -> Resident | Loaded:
    return stream(source, LIKE, size, more.pop("seed", 0), "the training data", **more)


def equal(a: Any, b: Any) -> bool:
    """Equal in structure, types and bits."""
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a is b or a == b


STRUCTURES: dict[str, Any] = {
    "pair": (X, Y),
    "three": (X, A, Y),
    "two inputs": ((X, A), Y),
    "two targets": (X, (Y, INDEX)),
    "named": Pair(X, Y),
    "dict": {"input_ids": X, "labels": Y},
    "nested dict": {"inputs": {"a": X, "b": [A, Y]}, "labels": Y},
    "dict and target": ({"a": X, "b": A}, Y),
    "one tensor": X,
    "one of a tuple": (X,),
}


# -- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_batch_that_fits_stays_what_it_is(name: str) -> None:
    batch = STRUCTURES[name]
    assert equal(fits(batch, LIKE, "the batch"), batch)


def test_lists_and_mappings_of_other_types() -> None:
    """A list at the top is a tuple, one deeper stays; mappings become dicts."""
    assert equal(fits([X, Y], LIKE, "the batch"), (X, Y))
    assert equal(fits([[X, A], Y], LIKE, "the batch"), ([X, A], Y))
    encoding = UserDict(input_ids=Y, labels=UserDict(a=X))  # as Hugging Face's BatchEncoding
    assert equal(fits(encoding, LIKE, "the batch"), {"input_ids": Y, "labels": {"a": X}})
    assert equal(fits((encoding, Y), LIKE, "the batch"), ({"input_ids": Y, "labels": {"a": X}}, Y))


def test_what_is_neither_tensor_nor_array_is_handed_on() -> None:
    packed, thing = pack_sequence([X[:3, 0], X[:2, 0]]), object()
    batch = {"text": ["a", "b"], "none": None, "packed": packed, "thing": thing, "names": np.array(["a"]), "n": 3}
    found = fits(batch, LIKE, "the batch")
    assert found["packed"] is packed and found["thing"] is thing and found["names"] is batch["names"]
    assert found["text"] == ["a", "b"] and found["none"] is None and found["n"] == 3
    assert isinstance(moved((packed, Y), torch.device("meta"))[0], PackedSequence)
    assert moved((packed, Y), torch.device("meta"))[0].data.device.type == "meta"


def test_names_of_parts() -> None:
    def names(batch: Any) -> list[str]:
        return [name for name, _ in named(batch)]

    assert names((X, Y)) == ["x", "y"] and names(X) == [""]
    assert names((X, A, Y)) == ["part 1", "part 2", "part 3"] and names((X,)) == ["part 1"]
    assert names(((X, A), {"a": Y})) == ["x[0]", "x[1]", "y['a']"]
    assert names({"labels": Y, "in": (X, [A])}) == ["batch['labels']", "batch['in'][0]", "batch['in'][1][0]"]
    assert names((X, {"mask": Y}, Y)) == ["part 1", "part 2['mask']", "part 3"]


def test_rows_of_a_batch() -> None:
    assert rows((X, Y)) == 20 and rows({"text": ["a"], "x": np.zeros((3, 2))}) == 3
    assert rows((torch.tensor(3.0), Y[:7])) == 7 and rows("abc") == 1
    assert common_rows({"a": X, "b": (A, Y)}, "data") == (20, torch.device("cpu"))
    assert mapped(len, ([X, A], Pair(Y, Y[:3]))) == ([20, 20], Pair(20, 3))


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.arange(4, dtype=np.float64), torch.float32),
        (np.arange(4, dtype=np.float16), torch.float32),
        (np.arange(4, dtype=np.longdouble), torch.float32),
        (np.arange(4, dtype=">f4"), torch.float32),
        (np.arange(4, dtype=">i2"), torch.int64),
        (np.arange(4, dtype=np.uint8), torch.int64),
        (np.arange(4, dtype=np.uint16), torch.int64),
        (np.arange(8, dtype=np.float32)[::2] / 2, torch.float32),
        (np.arange(4, dtype=np.float32)[::-1][::-1], torch.float32),
    ],
)
def test_arrays_become_tensors(array: np.ndarray, wanted: torch.dtype) -> None:
    array.flags.writeable = False  # as of memory-mapped files; torch would warn
    found = fits((array, Y), LIKE, "the batch")[0]
    assert torch.equal(found, torch.arange(4).to(wanted)) and found.dtype == wanted


def test_arrays_follow_half_precision_and_truth_values_stay() -> None:
    x, mask = fits((np.ones(3), np.array([True, False, True])), HALF, "the batch")
    assert x.dtype == torch.bfloat16 and mask.dtype == torch.bool and mask.tolist() == [True, False, True]
    assert fits(np.ones(3), HALF, "the batch", torch.float32).dtype == torch.float32
    assert fits(np.array(2.5), LIKE, "the batch").item() == 2.5
    array = np.zeros(3)
    fits(array, torch.zeros(1, dtype=torch.float64), "the batch").add_(1)
    assert array.sum() == 0  # the tensor has memory of its own


def test_another_floating_type_can_be_asked_for() -> None:
    assert equal(fits((X, Y), HALF, "the batch", torch.float32), (X, Y))
    with pytest.raises(GradtuneError, match=r"x of the batch is torch\.bfloat16 and the model torch\.float32"):
        fits((X.bfloat16(), Y), HALF, "the batch", torch.float32)
    assert made((np.ones((4, 2)), np.ones(4)), floats=torch.float64).at(0)[0].dtype == torch.float64


def test_numbers_that_are_no_floats_may_have_any_type() -> None:
    batch = (X.to(torch.complex64), Y.to(torch.uint8), Y > 3)
    assert equal(fits(batch, LIKE, "the batch"), batch)


# -- faults of a batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X.double(), Y), r"x of the batch is torch\.float64 and the model torch\.float32; convert one: "),
        ((X, Y.double()), r"y of the batch is torch\.float64"),
        ((X, A.half(), Y), r"part 2 of the batch is torch\.float16"),
        (((X, A.half()), Y), r"x\[1\] of the batch is torch\.float16"),
        ({"a": X, "labels": Y.half()}, r"batch\['labels'\] of the batch is torch\.float16"),
        (X.half(), r"^the batch is torch\.float16 and the model torch\.float32"),
        ((X, Y.to("meta")), "y of the batch lies on meta and the model on cpu; move one: .to\\('cpu'\\)"),
        (None, r"the batch is None; expected tensors, such as a pair \(x, y\)"),
        ((), "the batch is an empty tuple"),
        ([], "the batch is an empty list"),
        ({}, "the batch is an empty dict"),
    ],
)
def test_a_batch_that_does_not_fit(batch: Any, message: str) -> None:
    with pytest.raises(GradtuneError, match=message) as caught:
        fits(batch, LIKE, "the batch")
    assert "\n" not in str(caught.value)


# -- data by rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_rows_of_any_structure_are_drawn_in_the_order_of_a_pair(name: str) -> None:
    """As `(seed, epoch)` says, in any order of asking; what does not fill a batch is left out."""
    data = STRUCTURES[name]
    source = made(data, 6, seed=3)
    assert isinstance(source, Resident) and source.steps_per_epoch == 3
    for k in (4, 0, 2, 1, 5, 3):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(number(3, k // 3)))
        at = order[k % 3 * 6 : k % 3 * 6 + 6]
        assert equal(source.at(k), mapped(itemgetter(at), data))


@pytest.mark.parametrize("name", STRUCTURES)
def test_all_rows_without_a_batch_size(name: str) -> None:
    source = made(STRUCTURES[name])
    assert source.steps_per_epoch == 1
    assert source.at(7) is source.at(0) and equal(source.at(0), STRUCTURES[name])


@pytest.mark.parametrize("size", [None, 6, 20])
def test_once_through_all_rows_in_order(size: int | None) -> None:
    source = made(((X, A), Y), size)
    before = source.at(0)
    parts = list(source.once())
    assert [len(y) for _, y in parts] == ([6, 6, 6, 2] if size == 6 else [20])
    assert torch.equal(torch.cat([y for _, y in parts]), Y) and torch.equal(torch.cat([x[1] for x, _ in parts]), A)
    assert equal(source.at(0), before) and source.again() is source


def test_arrays_datasets_and_lists_are_rows_too() -> None:
    expected = made((X, Y), 6).at(4)
    for source in ([X, Y], TensorDataset(X, Y), (X.double().numpy(), Y.numpy()), [X, Y.numpy().astype(np.int16)]):
        found = made(source, 6)
        assert isinstance(found, Resident) and equal(found.at(4), expected)
        assert str(found) == "[20, 2] in batches of 6"
    assert equal(made({"x": X.numpy(), "y": Y}, 6).at(4), {"x": expected[0], "y": expected[1]})
    assert equal(made([X, A, Y]).at(0), (X, A, Y)) and equal(made([X]).at(0), (X,))
    assert equal(made(X.numpy(), 6).at(4), expected[0])
    assert equal(made(UserDict(x=X)).at(0), {"x": X})


def test_the_constructor_takes_a_pair_and_an_order() -> None:
    source = Resident(X, Y, 5, 0, "rows", lambda epoch: (torch.arange(20) + epoch) % 20)
    assert source.at(0)[1].tolist() == [0, 1, 2, 3, 4] and source.at(4)[1].tolist() == [1, 2, 3, 4, 5]
    again = Resident.of({"y": Y}, 5, 0, "rows", lambda epoch: torch.arange(20).flip(0))
    assert again.at(0)["y"].tolist() == [19, 18, 17, 16, 15]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((X, Y), "[20, 2] in batches of 6"),
        ((X, A, Y), "([20, 2], [20, 3], [20]) in batches of 6"),
        (((X, A), Y), "(([20, 2], [20, 3]), [20]) in batches of 6"),
        ({"input_ids": X, "labels": Y}, "{'input_ids': [20, 2], 'labels': [20]} in batches of 6"),
        (X, "tensor [20, 2] in batches of 6"),
        ((X,), "([20, 2],) in batches of 6"),
    ],
)
def test_the_text_that_a_checkpoint_is_known_by(data: Any, text: str) -> None:
    assert str(made(data, 6)) == text
    assert str(made(data)) == text.replace("of 6", "of 20")


# -- batches one by one -----------------------------------------------------------------------------------------------


def pairs() -> list[Any]:
    return [(X[k : k + 4], Y[k : k + 4]) for k in range(0, 20, 4)]


@pytest.mark.parametrize(
    "batches",
    [
        pairs(),
        [{"x": x, "y": y} for x, y in pairs()],
        [[x, y] for x, y in pairs()],
        [UserDict(x=x) for x, _ in pairs()],
        [(x.numpy(), y.numpy()) for x, y in pairs()],
        [((x, x), y) for x, y in pairs()],
    ],
    ids=["pairs", "dicts", "lists", "encodings", "arrays", "nested"],
)
def test_a_list_of_batches_is_a_loader(batches: list[Any]) -> None:
    source = made(batches)
    assert isinstance(source, Loaded) and source.steps_per_epoch == 5 and str(source) == "list"
    for k in range(12):
        found, expected = (fits(each, LIKE, "the batch") for each in (source.at(k), batches[k % 5]))
        assert equal(found, expected)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(pairs())


class Unsure:
    """A loader that has a length and does not know it."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return iter(pairs())


def test_steps_of_an_epoch() -> None:
    assert made(DataLoader(TensorDataset(X, Y), batch_size=6)).steps_per_epoch == 4
    assert made(DataLoader(TensorDataset(X, Y), batch_size=6, drop_last=True)).steps_per_epoch == 3
    assert made(DataLoader(Stream(), batch_size=None)).steps_per_epoch is None
    assert made(Unsure()).steps_per_epoch is None and made(each for each in pairs()).steps_per_epoch is None
    with pytest.raises(GradtuneError, match="the training data yields no batch"):
        made([]).steps_per_epoch  # noqa: B018


def test_steps_of_a_training() -> None:
    """By themselves, or as epochs of full batches."""
    source, endless = made((X, Y), 6), made(Unsure())
    assert steps_of(7, None, endless) == 7 and steps_of(None, 4, source) == 12 and steps_of(None, 4, source, 5) == 2
    assert steps_of(None, 1, source, 5) == 1
    wrong: list[tuple[int | None, int | None, str]] = [
        (None, None, "give one of the two"),
        (3, 3, "give one of the two"),
        (0, None, "steps = 0; expected"),
        (None, 0, "epochs = 0; expected"),
        (None, 2, r"have no length.*give steps=\.\.\."),
    ]
    for steps, epochs, message in wrong:
        with pytest.raises(GradtuneError, match=message):
            steps_of(steps, epochs, endless)


def shuffled(generator: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=generator)


def test_a_loader_goes_forward() -> None:
    source = made(shuffled(), seed=1)
    first = source.at(0)
    assert source.at(0) is first
    later = source.at(4)
    assert source.at(4) is later
    for k in (3, 0, -1):
        with pytest.raises(GradtuneError, match=rf"batch {k} of the training data is asked for after batch 4, and a"):
            source.at(k)
    assert source.at(4) is later  # nothing was lost
    again = made(shuffled(), seed=1)
    again.load(source.state())
    assert equal(again.at(4), later) and equal(again.at(5), source.at(5))
    with pytest.raises(GradtuneError, match="rising order"):
        again.at(2)


@pytest.mark.parametrize("own", [False, True], ids=["global", "generator"])
def test_orders_of_a_loader_are_those_of_its_seed(own: bool) -> None:
    """The state of torch's generator starts from the seed, the loader's own generator from where it is."""
    source = made(shuffled(torch.Generator().manual_seed(5) if own else None), seed=4)
    found = [y for _, y in (source.at(k) for k in range(6))]
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(number(4)).get_state())
        loader = shuffled(torch.Generator().manual_seed(5) if own else None)
        expected = [y for _ in range(2) for _, y in loader]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("own", [False, True], ids=["global", "generator"])
def test_streams_beside_one_another_share_a_loader(own: bool) -> None:
    """Each from the beginning, whatever the others take; the loader's generator is as it was."""
    generator = torch.Generator().manual_seed(5) if own else None
    source = made(shuffled(generator), seed=4)
    before = generator.get_state() if generator else None
    one, two = source.again(), source.again()
    ones, twos = [], []
    for k in range(7):
        ones.append(one.at(k))
        twos += [two.at(j) for j in range(2 * k, 2 * k + 2)]
        if k == 4:
            passes = [list(source.once()) for _ in range(2)]
    assert before is None or torch.equal(generator.get_state(), before)  # type: ignore[union-attr]
    third = source.again()
    assert equal([third.at(k) for k in range(14)], twos) and equal(twos[:7], ones)
    assert equal(passes[0], passes[1]) and equal(passes[0], twos[:3])
    resumed = source.again()
    resumed.load(one.state())
    assert equal(resumed.at(7), twos[7])
    alone = made(shuffled(torch.Generator().manual_seed(5) if own else None), seed=4)
    assert equal([alone.at(k) for k in range(7)], ones)


def test_a_sampler_with_a_generator_counts() -> None:
    data = TensorDataset(X, Y)
    loader = DataLoader(data, batch_size=8, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(2)))
    source = made(loader)
    assert equal(list(source.once()), list(source.once()))


# -- faults of data ---------------------------------------------------------------------------------------------------


class Frame:
    """As pandas' DataFrame: it can be turned into an array, and iterated over by column."""

    def __array__(self) -> np.ndarray:
        return np.zeros((3, 2))

    def __iter__(self) -> Iterator[str]:
        return iter("ab")


class Augmented(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return tuple(-part for part in super().__getitem__(index))


class Rows(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        ((X, Y[:5]), None, "the training data has 20 inputs and 5 targets; expected as many, and at least one"),
        ((X[:0], Y[:0]), None, "the training data has no row; expected at least one"),
        ((X, A, Y[:5]), 4, "has 20 rows in part 1 and 5 in part 3; expected as many in all parts"),
        (((X, A[:3]), Y), None, r"has 20 rows in x\[0\] and 3 in x\[1\]"),
        ({"ids": X, "labels": Y[:5]}, 4, r"20 rows in batch\['ids'\] and 5 in batch\['labels'\]"),
        (((X[:4], Y[:4]), (X[4:], Y[4:])), None, r"4 rows in x\[0\] and 16 in y\[0\].*batches are given .* as a list"),
        ([X, A, Y[:5]], 4, "20 rows in part 1 and 5 in part 3"),
        (X[:0], None, "the training data has no row; expected at least one"),
        ((X, torch.tensor(1.0)), None, "y of the training data is one number without rows"),
        ((X, Y), 21, "a batch of 21 cannot be drawn from 20 rows; expected 1 to 20"),
        ((X, Y), 0, "a batch of 0 cannot be drawn"),
        ((X, [1, 2, 3]), 4, r"y\[0\] of the training data is a int; expected tensors or numpy arrays"),
        ((X, Frame()), 4, "y of the training data is a Frame; expected tensors or numpy arrays"),
        ({"ids": X, "text": ["a"]}, None, r"batch\['text'\]\[0\] of the training data is a str; expected tensors or"),
        ({"train": Rows(), "test": Rows()}, None, r"batch\['train'\] of the training data is a Rows; expected tensors"),
        ({}, None, "the training data is an empty dict"),
        ((), None, "the training data is an empty tuple"),
        ((X, np.array(["a"] * 20)), None, "y of the training data is a array of <U1; expected a tensor, or an array"),
        ([X, (A, Y)], None, r"a list of tensors and of a tuple, which could be rows or batches; give rows as a tuple"),
        ([(X, A), Y], 4, "a list of tensors and of a tuple"),
        (
            pairs(),
            4,
            "the training data is a list of 5 batches, each of which has a batch size of its own; leave it out",
        ),
        (shuffled(), 4, "the training data is a DataLoader, which has a batch size of its own; leave it out here"),
        (Rows(), None, r"is a Dataset, which yields single rows; wrap it: DataLoader\(dataset, batch_size=\.\.\.\)"),
        (Augmented(X, Y), 4, "is a Dataset, which yields single rows"),
        (Frame(), None, r"is a Frame; expected tensors or arrays: turn it into one by numpy\.asarray"),
        ("data.csv", None, r"the training data is a str; expected tensors \(x, y\) or a DataLoader"),
        (7, None, r"the training data is a int; expected tensors \(x, y\) or a DataLoader"),
        (None, None, r"the training data is a NoneType; expected tensors"),
        ((X.double(), Y), 4, r"x of the training data is torch\.float64 and the model torch\.float32; convert one"),
        ({"ids": X.to("meta")}, 4, r"batch\['ids'\] of the training data lies on meta and the model on cpu"),
    ],
)
def test_data_that_cannot_be_trained_on(data: Any, size: int | None, message: str) -> None:
    with pytest.raises(GradtuneError, match=message) as caught:
        made(data, size)
    assert "\n" not in str(caught.value)


def test_a_loader_that_ends() -> None:
    source = made(iter(pairs()))
    assert equal(source.at(4), pairs()[4])
    with pytest.raises(GradtuneError, match="ended after 5 batches and is an iterator, which cannot start again"):
        source.at(5)
    empties: list[Any] = [[], DataLoader(TensorDataset(X[:3], Y[:3]), batch_size=5, drop_last=True)]
    for empty in empties:
        with pytest.raises(GradtuneError, match="the training data yields no batch; give a loader with at least one"):
            made(empty).at(0)
        with pytest.raises(GradtuneError, match="yields no batch"):
            list(made(empty).once())
