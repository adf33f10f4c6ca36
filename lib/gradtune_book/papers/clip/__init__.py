"""The Clip paper: a quadratic toy, the weight decay of a net on MNIST, the keep probability of a language model."""
