"""The OnePass paper: eight regression sets, its sensitivity, its horizons, on tables and on small images."""
