"""Episodes: what to run, where simulators live, and the pool and collector that run them."""
