"""Problems to train on: each offers batched training and validation losses (`step.Problem`) and its own test metric."""
