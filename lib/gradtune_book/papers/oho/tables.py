"""What the chapters and claims on the OHO paper read off the recorded runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gradtune_book import paths
from gradtune_book.papers.oho import dynamics, layerwise
from gradtune_book.papers.oho import performance as performance_study
from gradtune_book.papers.oho.schedules import STEP, WAYS
from gradtune_book.papers.oho.training import OHO, SPLIT, TARGET

GLOBAL, LAYERWISE = "OHO, global", "OHO, layerwise"
ROWS = (*WAYS, GLOBAL, LAYERWISE)
"""The rows of Figure 3, in its order."""

CHANCE = math.log(10)
"""Cross entropy of a guess among ten classes: the test loss of a training that diverged."""

LOSS, SPREAD, SECONDS = "test loss", "distance from the median", "seconds"
REACHED, RATE, RATIO = f"share of trainings at {TARGET} or below", "good trainings a minute", "in trainings of Fixed"
MNIST_ROWS = 50_000
"""Images of MNIST that train where 10,000 validate."""

TRAININGS, UNTIL = f"trainings until {TARGET}", f"seconds until {TARGET}"


def with_loss(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `LOSS`, the final test loss and at most that of a guess, and `SECONDS`, the processor's seconds."""
    loss = frame["test"].fillna(CHANCE).clip(upper=CHANCE)
    return frame.assign(**{LOSS: loss, SECONDS: frame["cpu_s"] if "cpu_s" in frame else frame["wall_s"]})


def with_spread(frame: pd.DataFrame, row: str) -> pd.DataFrame:
    """Add `SPREAD`: how far the loss of a run is from the median of its row."""
    return frame.assign(**{SPREAD: (frame[LOSS] - frame.groupby(row)[LOSS].transform("median")).abs()})


def settings() -> pd.DataFrame:
    """Return the settings that the text gives beside those of the studies at the paper's size, and their place."""
    base, sets, moves = performance_study.SIZES["paper"].base, layerwise.SIZES["paper"], dynamics.SIZES["paper"]
    ours = (
        *(base.validation, base.width, base.layers, base.meta_rate, moves.meta_rate, base.lr, base.decay),
        *(base.outer_batch, TARGET, MNIST_ROWS // base.batch, sets.seeds, moves.base.lr, dynamics.RATE_AFTER),
    )
    given = pd.read_csv(paths.published_root() / "oho_settings.csv").set_index("quantity")
    table = given[["value", "source"]].rename(columns={"value": "paper", "source": "place"})
    return table.assign(ours=[float(x) for x in ours])[["paper", "ours", "place"]].rename_axis(None)


# --- Figures 2 and 3 --------------------------------------------------------------------------------------------------


def trainings(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the trainings from random draws with their row of Figure 3, whether they are good, and how often a minute.

    Args:
        frame: Runs of the study `oho_performance`.
    """
    if frame.empty:
        return frame
    one = with_loss(frame[frame["search"] == "random"])
    names = [(GLOBAL if s == 1 else LAYERWISE) if m == OHO else m for m, s in zip(one["method"], one["sets"])]
    reached = (one[LOSS] <= TARGET).astype(float)
    one = one.assign(row=names, **{REACHED: reached, RATE: 60 * reached / one[SECONDS]})
    return with_spread(one, "row")


def performance(frame: pd.DataFrame) -> pd.DataFrame:
    """Return, for each row of Figure 3, what a training costs and how good it is, over the draws."""
    one = trainings(frame)
    groups = one.groupby("row")
    out = groups[[LOSS]].agg(["count", "mean", "sem", "min", "max"]).droplevel(0, axis=1)
    out.columns = pd.Index(["trainings", LOSS, "error", "lowest", "highest"])
    out[REACHED], out[SECONDS], out[RATE] = (groups[c].mean() for c in (REACHED, SECONDS, RATE))
    if "Fixed" in out.index:
        out[RATIO] = out[SECONDS] / out.loc["Fixed", SECONDS]
    return out.reindex([r for r in ROWS if r in out.index]).rename_axis(None)


def searches(frame: pd.DataFrame) -> pd.DataFrame:
    """Return, for each Bayesian optimisation, its trainings until one is good; all and one more where none is."""
    if frame.empty:
        return frame
    rows = []
    for _, run in frame[frame["search"] == "bayes"].iterrows():
        good = [k for k, loss in enumerate(run["trial_test"]) if loss is not None and loss <= TARGET]
        first, seconds = (good[0] + 1, run["trial_s"][good[0]]) if good else (len(run["trial_test"]) + 1, math.nan)
        rows.append((run["method"], run["seed"], first, seconds, run["test"]))
    return pd.DataFrame(rows, columns=["row", "seed", TRAININGS, UNTIL, LOSS])


def at_equal_time(frame: pd.DataFrame, draws: int = 2000) -> pd.DataFrame:
    """Return what each way to train reaches in the processor's time of one training with global OHO.

    As many trainings of a way as fit are drawn from those recorded, again and again; the one of lowest validation loss
    counts. OHO has one training, from initial values drawn in the same way.

    Args:
        frame: Runs of the study `oho_performance`.
        draws: How often trainings are drawn.
    """
    one, rng, rows = trainings(frame), np.random.default_rng(0), {}
    time = one.loc[one["row"] == GLOBAL, SECONDS].mean()
    for row in [r for r in ROWS if r in set(one["row"]) and r != LAYERWISE]:
        own = one[one["row"] == row]
        fit = max(1, int(time / own[SECONDS].mean() + 1e-9)) if row != GLOBAL else 1
        chosen = rng.integers(0, len(own), (draws, fit))
        val, loss = own["val"].fillna(np.inf).to_numpy()[chosen], own[LOSS].to_numpy()[chosen]
        best = loss[np.arange(draws), val.argmin(1)]
        found = {"mean test loss": best.mean(), "median": np.median(best), REACHED: (best <= TARGET).mean()}
        rows[row] = {"trainings": fit, **found}
    return pd.DataFrame(rows).T.astype({"trainings": int})


# --- Figures 4 and 5 --------------------------------------------------------------------------------------------------


def of_figure_5(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of Figure 5 with their loss, its spread and seconds; the row is the number of sets."""
    if frame.empty:
        return frame
    one = with_loss(frame[(frame["method"] == OHO) & (frame["lr"] == frame["lr"].min())])
    return with_spread(one.assign(row=one["sets"]), "row")


def by_sets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return loss, its standard deviation and seconds by the number of sets."""
    groups = of_figure_5(frame).groupby("sets")
    out = groups[LOSS].agg(["count", "mean", "sem", "std"])
    out.columns = pd.Index(["runs", LOSS, "error", "standard deviation"])
    return out.assign(**{SECONDS: groups[SECONDS].mean()}).rename_axis("sets")


def of_figure_4(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of Figure 4 with their loss; the row says how many sets and from which learning rate."""
    if frame.empty:
        return frame
    one = with_loss(frame[(frame["method"] == OHO) & (frame["lr"] > frame["lr"].min())])
    kinds = [GLOBAL if s == 1 else LAYERWISE for s in one["sets"]]
    return one.assign(kind=kinds, row=[f"{k}, {lr:g}" for k, lr in zip(kinds, one["lr"])])


def by_start(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the test losses of Figure 4: initial learning rates in rows, global and layerwise in columns."""
    groups = of_figure_4(frame).groupby(["lr", "kind"])[LOSS]
    out = pd.concat({"mean": groups.mean(), "error": groups.sem(), "runs": groups.size()}, axis=1).unstack("kind")
    out.columns = pd.Index([f"{kind.removeprefix('OHO, ')}, {what}" for what, kind in out.columns])
    return out.rename_axis("initial learning rate")


def layer_rates(frame: pd.DataFrame, share: float = 1.0) -> pd.DataFrame:
    """Return the learning rates of layerwise OHO after a share of the training: a row a run, a column a layer."""
    one = of_figure_4(frame)
    if one.empty or not (one["kind"] == LAYERWISE).any():
        return pd.DataFrame()
    one = one[one["kind"] == LAYERWISE]

    def of_run(run: pd.Series) -> list[float | None]:
        at = round(share * (len(run["steps"]) - 1))
        return [run[f"lr_{k}"][at] for k in range(run["sets"])]

    out = pd.DataFrame([of_run(run) for _, run in one.iterrows()], dtype=float).rename(
        columns=lambda k: f"layer {k + 1}"
    )
    return out.assign(lr=one["lr"].to_numpy(), seed=one["seed"].to_numpy()).set_index(["lr", "seed"])


def clustering(frame: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """Return how far log learning rates lie apart, by seed of at least two starts: layers of a run, starts of a layer.

    A difference between layers that all starts share is "layers"; what is left between the starts of a layer is
    "starts". Both are standard deviations of `log10` of the learning rates.

    Args:
        frame: Runs of the study `oho_layerwise`.
        share: After which share of the training; the paper says "early".
    """
    rates = layer_rates(frame, share)
    rows = []
    for seed, runs in rates.groupby("seed") if len(rates) else ():
        if len(runs) < 2:
            continue  # not recorded yet
        logs = np.log10(runs.clip(lower=1e-12).to_numpy())
        rows.append((seed, "layers", logs.mean(0).std(ddof=1)))
        rows.append((seed, "starts", np.sqrt(logs.var(0, ddof=1).mean())))
    return pd.DataFrame(rows, columns=["seed", "row", "apart"])


def split_form(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the loss of layerwise OHO beside that of the published program's one influence, same seeds."""
    if frame.empty:
        return frame
    one = with_loss(frame[(frame["lr"] == frame["lr"].min()) & (frame["sets"] == frame["sets"].max())])
    seeds = set(one.loc[one["method"] == SPLIT, "seed"])
    one = one[one["seed"].isin(seeds)]
    out = one.groupby("method")[LOSS].agg(["count", "mean", "sem"])
    return out.set_axis(["runs", LOSS, "error"], axis=1).rename_axis(None)


# --- Figures 6 to 10 --------------------------------------------------------------------------------------------------

BACK, SWING = "share of the jump that is left", "swing of the test loss"


def part(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Return the runs of parts of the study `oho_dynamics`, with their loss."""
    return with_loss(frame[frame["part"].isin(names)]) if len(frame) else frame


def resets(frame: pd.DataFrame, name: str, later: float = 0.1) -> pd.DataFrame:
    """Return what becomes of a reset, run by run (Figure 6).

    `BACK` is the distance of the hyperparameter from that of the same run left alone, a share `later` of the training
    after the reset, divided by the distance that the reset made. It is NaN where the reset moved the hyperparameter by
    less than a tenth of its largest value in the run left alone. `SWING` is the mean size of the change of the test
    loss between two readings after the reset.

    Args:
        frame: Runs of the study `oho_dynamics`.
        name: `dynamics.RATE_RESET` or `dynamics.DECAY_RESET`.
        later: Share of the training.
    """
    one, curve = part(frame, name), "lr_0" if name == dynamics.RATE_RESET else "decay_0"
    alone = part(frame, dynamics.ALONE)
    if one.empty or alone.empty:
        return pd.DataFrame()
    alone = alone.set_index("seed")[curve]
    rows = []
    for _, run in one[one["seed"].isin(alone.index)].iterrows():
        steps = np.array(run["steps"])
        at = int(np.searchsorted(steps, steps[-1] * run["at"] / run["epochs"]))
        then = min(len(steps) - 1, at + max(1, round(later * (len(steps) - 1))))
        values, still = (np.array(x, dtype=float) for x in (run[curve], alone[run["seed"]]))
        jump = abs(run["to"] - still[at])
        moved = jump > 0.1 * np.nanmax(np.abs(still))
        back = abs(values[then] - still[then]) / jump if moved else math.nan
        losses = np.array(run["test_curve"], dtype=float)[at:]
        swing = np.abs(np.diff(np.nan_to_num(losses, nan=CHANCE))).mean()
        rows.append((run["seed"], run["at"], run["after"], back, run[LOSS], swing))
    return pd.DataFrame(rows, columns=["seed", "at", "after", BACK, LOSS, SWING])


def reset_table(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return means over seeds of `resets`, by epoch of the reset and what follows it."""
    out = resets(frame, name).groupby(["at", "after"])[[BACK, LOSS, SWING]].mean()
    return out.rename(columns={LOSS: "test loss at the end"}).rename_axis(
        ["epoch of the reset", "hyperparameters after"]
    )


OUTER_ROWS = {"validation": "validation images", "training": "training images"}


def outer_data(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of Figure 7, the row a kind of outer data, with weight decay and learning rate at the end."""
    one = part(frame, dynamics.ALONE, dynamics.OUTER)
    if one.empty:
        return one
    kinds = zip(one["method"], one["outer"], one["outer_batch"])
    names = [STEP if m == STEP else f"{OUTER_ROWS[o]}, {b}" for m, o, b in kinds]
    ends = {c: [_last(v) for v in one[c]] for c in ("lr_0", "decay_0")}
    return one.assign(row=names, **{"final learning rate": ends["lr_0"], "final weight decay": ends["decay_0"]})


def _last(values: object) -> float:
    return float(values[-1]) if isinstance(values, Sequence) and values[-1] is not None else math.nan


def means(frame: pd.DataFrame, by: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return the number of runs, and means with standard errors of the first column, by a column of the runs."""
    groups = frame.groupby(by, sort=False)
    first, *others = columns
    out = groups[first].agg(["count", "mean", "sem"]).set_axis(["runs", columns[first], "error"], axis=1)
    return out.assign(**{columns[c]: groups[c].mean() for c in others}).rename_axis(None)


def intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of Figure 8 with loss and spread; the row is the interval of the resets, "never" last."""
    one = part(frame, dynamics.INFLUENCE)
    if one.empty:
        return one
    names = ["never" if pd.isna(k) else f"every {k:g}" for k in one["reset_every"]]
    return with_spread(one.assign(row=names, interval=one["reset_every"].fillna(np.inf)), "row")


EXPLODED, GROWTH = 100.0, "growth of the norm in the last third"
"""From this factor on, of a norm in the last third of a training over its median in the middle third, it explodes."""


def thirds(values: Sequence[float | None]) -> list[np.ndarray]:
    """Return a curve without its first point in three parts, NaN where a value is missing."""
    return np.array_split(np.array(values, dtype=float)[1:], 3)


def explodes(values: Sequence[float | None]) -> bool:
    """Tell whether a norm explodes: it is not finite, or is `EXPLODED` times its median in the middle third later."""
    _, middle, last = thirds(values)
    return bool(~np.isfinite(last).all() or last.max() > EXPLODED * np.median(middle))


def norms(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of Figures 9 and 10 with whether a norm explodes, and the growth of log10 norm by thirds.

    Columns: `lr explodes`, `decay explodes` and `jacobian explodes` (NaN where not measured), and `early` and `late`,
    the growth of log10 of the rate's norm from the first to the second third and from the second to the third.
    """
    one = part(frame, dynamics.META, dynamics.NORMS)
    if one.empty:
        return one
    out = {f"{n} explodes": [explodes(v) for v in one[f"norm_{n}"]] for n in ("lr", "decay")}
    jacobian = [
        math.nan if not isinstance(v, list) else float(explodes(v)) for v in one.get("jacobian", [None] * len(one))
    ]
    logs = [
        [np.log10(np.nanmedian(t)) if np.isfinite(t).any() else math.nan for t in thirds(v)] for v in one["norm_lr"]
    ]
    early, late = ([x[k + 1] - x[k] for x in logs] for k in (0, 1))
    return one.assign(**out, **{"jacobian explodes": jacobian, "early": early, "late": late})


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of Figure 10 with the correlation's mean, its size and deviation in the first and last window."""
    one = part(frame, dynamics.NORMS)
    if one.empty:
        return one
    ends = {"first mean": ("correlation", 0), "last mean": ("correlation", -1)}
    ends |= {f"{n} deviation": ("correlation_deviation", k) for n, k in (("first", 0), ("last", -1))}
    columns = {n: [float(v[k]) if v[k] is not None else math.nan for v in one[c]] for n, (c, k) in ends.items()}
    columns |= {f"{n} size": [abs(v) for v in columns[f"{n} mean"]] for n in ("first", "last")}
    return one.assign(row=[f"from {lr:g}" for lr in one["lr"]], **columns)


def program_form(frame: pd.DataFrame) -> pd.DataFrame:
    """Return losses and final hyperparameters of OHO left alone beside the program's forms, over seeds."""
    return _ends(part(frame, dynamics.ALONE, dynamics.PROGRAM_PART), "method")


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """Return losses and final hyperparameters where one open choice at a time is changed, over seeds."""
    one, fields = part(frame, dynamics.ALONE, dynamics.CHOICES), [*{n for v in dynamics.VARIATIONS.values() for n in v}]
    alone = one[one["part"] == dynamics.ALONE] if len(one) else one
    if alone.empty:
        return alone
    base = alone.iloc[0]

    def name(run: pd.Series) -> str:
        changed = {n for n in fields if run[n] != base[n]}
        return next((title for title, v in dynamics.VARIATIONS.items() if set(v) == changed), "as chosen")

    return _ends(one.assign(choice=[name(run) for _, run in one.iterrows()]), "choice")


def _ends(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    ends = {name: [_last(v) for v in frame[c]] for name, c in (("rate", "lr_0"), ("decay", "decay_0"))}
    columns = {LOSS: LOSS, "rate": "final learning rate", "decay": "final weight decay"}
    return means(frame.assign(**ends), by, columns)
