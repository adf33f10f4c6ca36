"""Problems to train on: each offers batched training and validation losses (`core.Problem`) and its own test metric."""
