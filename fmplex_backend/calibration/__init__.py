"""The cost model's coefficients: fitted to what an engine measures, kept on disk, fitted anew in service. No torch."""
