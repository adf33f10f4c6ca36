"""What a step of each way costs in plain steps by AdamW, by problem: the plan of the study `together`.

Each number is a measurement of processor time beside AdamW's, in one process on a shared machine, to two digits; of
searches and of the recipe a line through two lengths of training, since part of their cost does not grow with it. It
decides how many steps a way is given, and nothing else; the runs' own times are recorded. None: it was not
measured, as the way does not apply or is not run there. Fashion-MNIST counts as MNIST.
"""

PROBLEMS = (
    "energy",
    "kin8nm",
    "mnist",
    "lenet",
    "digits",
    "residual",
    "words",
    "stream",
)
"""The columns."""

COSTS: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("recipe", "rate and decay"): (3.1, 2.5, 2.1, 2.2, 2.3, 5.0, 2.3, None),
    ("oho", "rate and decay"): (5.1, 4.9, 5.9, 4.7, 7.3, 7.8, 5.6, None),
    ("oho", "rate, decay and momentum"): (5.7, None, 5.7, None, 7.3, None, None, None),
    ("oho", "rates by tensor"): (6.2, None, 7.7, None, 16.0, None, None, None),
    ("oho", "smoothing"): (None, None, 4.4, None, 6.2, None, None, None),
    ("unroll_k", "rate and decay"): (3.4, 3.9, 3.3, 3.4, 4.3, 4.7, 3.9, None),
    ("unroll_k", "rate, decay and momentum"): (4.0, None, 4.4, None, 5.0, None, None, None),
    ("unroll_k", "rates by tensor"): (4.3, None, 6.1, None, 13.0, None, None, None),
    ("unroll_k", "smoothing"): (None, None, 2.9, None, 4.6, None, None, None),
    ("clip_r", "rate and decay"): (5.7, 6.1, 4.9, 4.9, 8.4, 7.9, 6.0, None),
    ("clip_r", "rate, decay and momentum"): (5.5, None, 5.9, None, 8.6, None, None, None),
    ("clip_r", "rates by tensor"): (6.6, None, 9.4, None, 18.0, None, None, None),
    ("clip_r", "smoothing"): (None, None, 4.1, None, 6.6, None, None, None),
    ("greedy", "rate and decay"): (4.3, 3.6, 3.4, 2.3, 4.8, 3.9, 3.0, None),
    ("fds", "rate"): (4.2, 4.4, 4.3, 4.8, 5.9, 5.7, 5.5, None),
    ("per_step", "rate"): (4.7, 4.6, 3.8, 3.4, 6.4, 4.2, 4.2, None),
    ("onepass", "rate and decay"): (2.2, 2.2, 1.9, 1.7, 2.3, 2.2, 1.9, None),
    ("onepass", "rate, decay and momentum"): (2.2, None, 1.8, None, 2.5, None, None, None),
    ("onepass", "rates by tensor"): (2.1, None, 2.0, None, 2.4, None, None, None),
    ("onepass", "smoothing"): (None, None, 2.1, None, 2.6, None, None, None),
    ("onepass_adamw", "rate and decay"): (2.4, 2.9, 2.5, 1.7, 2.1, 2.1, 2.5, None),
    ("onepass_hdlr", "rate and decay"): (1.9, 2.2, 2.1, 1.7, 2.3, 2.2, 1.9, None),
    ("lorraine", "decay"): (2.3, 2.1, 1.7, 1.6, 2.2, 2.1, 1.7, None),
    ("lorraine", "smoothing"): (None, None, 2.2, None, 2.6, None, None, None),
    ("diff_through_opt", "rate and decay"): (2.4, 2.6, 2.0, 1.7, 2.5, 2.3, 2.0, None),
    ("diff_through_opt", "rate, decay and momentum"): (2.6, None, 1.7, None, 2.6, None, None, None),
    ("diff_through_opt", "rates by tensor"): (2.5, None, 1.9, None, 2.6, None, None, None),
    ("diff_through_opt", "smoothing"): (None, None, 2.1, None, 2.7, None, None, None),
    ("hd", "rate"): (1.6, 1.8, 1.4, 1.1, 1.5, 1.1, 1.6, 1.4),
    ("baydin", "rate"): (1.7, 2.4, 1.5, 1.1, 1.5, 1.0, 1.6, 1.6),
    ("metaoptimize_hf", "rate"): (1.6, 2.0, 1.4, 1.1, 1.4, 1.0, 1.6, 1.0),
    ("metaoptimize_hf", "rates by tensor"): (2.4, None, 2.0, None, 1.5, None, None, None),
    ("MetaOptimize", "rate"): (1.0, 1.0, 1.0, 0.96, 0.94, 1.0, 1.0, 0.96),
    ("MetaOptimize-blocks", "rates by tensor"): (1.3, 1.3, 1.1, 1.0, 1.1, 0.98, 1.2, 1.1),
    ("random", "rate and decay"): (1.1, 1.9, 1.2, 1.0, 1.4, 1.0, 1.4, None),
    ("grid", "rate"): (1.4, 1.2, 1.3, 1.1, 1.7, 1.2, 1.8, None),
    ("bayes", "rate and decay"): (1.4, 1.4, 1.3, 1.2, 1.1, 1.1, 1.2, None),
    ("hyperband", "rate and decay"): (1.2, 1.2, 1.4, 1.5, 1.6, 1.7, 1.6, None),
    ("bohb", "rate and decay"): (1.2, 1.6, 1.8, 1.2, 1.4, 1.6, 1.8, None),
    ("asha", "rate and decay"): (1.5, 1.5, 1.5, 3.6, 1.7, 2.9, 2.9, None),
    ("pbt", "rate and decay"): (1.2, 1.4, 1.5, 2.1, 1.6, 4.6, 1.6, None),
    ("AdamW", ""): (0.99, 1.1, 0.97, 1.0, 1.1, 0.97, 0.96, 0.94),
    ("SGD", ""): (0.63, 0.64, 0.63, 0.93, 0.94, 0.97, 0.74, 0.68),
    ("AdamW-1e-3", ""): (1.0, 0.96, 0.99, 1.0, 1.1, 0.94, 1.1, 1.1),
    ("AdamW-cosine", ""): (1.1, 1.1, 0.94, 0.99, 1.0, 1.0, 1.1, 1.1),
    ("SGD-cosine", ""): (0.77, 0.74, 0.79, 0.95, 0.71, 0.99, 0.78, 0.86),
    ("ScheduleFree", ""): (0.89, 0.93, 0.85, 1.0, 0.96, 1.0, 0.88, 0.96),
    ("Prodigy", ""): (1.1, 1.1, 1.1, 0.99, 1.0, 1.0, 0.95, 1.2),
    ("D-Adaptation", ""): (0.88, 1.0, 0.94, 1.0, 1.0, 0.94, 0.98, 1.1),
    ("DoG", ""): (0.92, 1.1, 1.0, 1.0, 0.96, 1.0, 1.1, 1.1),
}
"""By way and what it tunes; a value for each of `PROBLEMS`."""
