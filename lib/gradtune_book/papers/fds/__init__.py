"""The FDS paper: noise of per-step hypergradients, learning rate schedules, regret on CIFAR-10."""
