"""What a step of each method costs beside plain training: `python benchmarks/step_cost.py`."""
