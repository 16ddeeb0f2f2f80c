"""What users notice when engines, hosts and servers die: ``fmplex bench faults``."""
