"""Simulators behind one contract; each is imported only where it runs."""
