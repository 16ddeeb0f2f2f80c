"""`fmplex bench compare`: FMplex and what people do without it, the same tasks on the same machine."""
