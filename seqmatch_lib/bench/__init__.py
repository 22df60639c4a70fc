"""Speed and memory of the engines, and what a run will cost."""
