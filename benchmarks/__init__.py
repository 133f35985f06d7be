"""What the package costs: `make bench`. The results are in the docs."""
