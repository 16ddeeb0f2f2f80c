"""How many tasks a cluster hosts, in virtual time: as vFMs that are planned and shared, and as private copies."""
