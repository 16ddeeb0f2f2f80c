"""``fmplex bench fair``: what the fair queue promises, measured on the real server."""
