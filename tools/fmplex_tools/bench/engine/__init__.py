"""``fmplex bench engine``: what sharing one backbone costs, each scenario side by side with what it is compared to."""
