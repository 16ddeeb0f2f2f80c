"""What people serve many adapters with where there is no FMplex: models for Triton's own Python backend."""
