"""`fmplex bench families`: physical FMs of several modalities on one machine, each alone and all at once."""
