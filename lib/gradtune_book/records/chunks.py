"""What there is to compute: the chunks of a study, their fixed parts, and the job of a call.

Chunks are cut from the study's full list before anything else is looked at, and so are shards: neither depends on what
is recorded, nor on who computes it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from gradtune.errors import GradtuneError, unknown
from gradtune_book import config
from gradtune_book.records.study import Study, batches


@dataclass(frozen=True)
class Chunk:
    """Runs computed together: configurations that agree in all but the field `study.varied`.

    Attributes:
        index: Position of the chunk among those of its study, counted from 0.
        configs: Configurations of the runs.
        keys: Key of each run in the records (`config.key`), in the same order.
    """

    index: int
    configs: list[Any]
    keys: list[str]

    def cost(self, study: Study) -> float:
        """Return how long the chunk takes, compared with other chunks of the study."""
        return len(self.configs) * study.cost(self.configs[0])


def cut(study: Study, scale: str) -> list[Chunk]:
    """Cut a study's runs into chunks: at most `study.chunk` neighbours that agree in all but `study.varied`."""
    parts = batches(study, study.runs(scale))
    return [Chunk(k, part, [config.key(study.name, cfg) for cfg in part]) for k, part in enumerate(parts)]


class Shard(NamedTuple):
    """A fixed part of a study's chunks: every `of`-th, from the `number`-th on. The parts are disjoint, and complete.

    Attributes:
        number: Which part, counted from 1.
        of: Number of parts.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that a text such as "2/8" names.

        Raises:
            GradtuneError: It names none.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and len(text) < 20 and 1 <= int(number) <= int(of)):
            raise GradtuneError(f"a shard is K/N with K from 1 to N, such as 2/8, not {text!r}")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard()
"""All chunks of a study."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; picklable, so a study's functions must live at the top of a module.

    Attributes:
        study: The study.
        scale: One of `config.SCALES`.
        device: "cpu", "cuda" or "cuda:N".
        deadline: Reading of `time.monotonic()`, in seconds, at which no new chunk may start; the clock is the same in
            all processes of a machine. None for no deadline.
        shard: The part of the study's chunks that is computed.
        methods: Only chunks of these methods are computed; () stands for all.
    """

    study: Study
    scale: str
    device: str
    deadline: float | None
    shard: Shard = WHOLE
    methods: tuple[str, ...] = ()

    def chunks(self) -> list[Chunk]:
        """Return the job's chunks: those of its shard and of its methods, whatever is recorded already.

        Raises:
            GradtuneError: The study has no run of a method at its scale.
        """
        every = cut(self.study, self.scale)
        known = dict.fromkeys(chunk.configs[0].method for chunk in every)
        for method in self.methods:
            if method not in known:
                raise unknown(f"method of {self.study.name} at scale {self.scale}", method, known)
        part = every[self.shard.number - 1 :: self.shard.of]
        return [chunk for chunk in part if not self.methods or chunk.configs[0].method in self.methods]
