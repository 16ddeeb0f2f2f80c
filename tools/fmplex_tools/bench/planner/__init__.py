"""The planner, measured: how long it takes, how near to the best it comes, how true its estimate is."""
