"""Held-out protocol, success rates with intervals, records and pictures."""
