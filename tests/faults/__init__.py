"""Faults of process and disk against a training and a sweep: kills, damage, a disk that refuses."""
