"""What a step of each method costs compared with plain training: `python benchmarks/step_cost.py`."""
