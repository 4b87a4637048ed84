"""The same runs on a Ray cluster; ray is imported nowhere else."""
