"""One file for each kind of check: its fields in a criteria file and how it judges a run."""
