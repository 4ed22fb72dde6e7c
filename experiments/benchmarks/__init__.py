"""Measurements that claims in the documentation rest on: each a launch of its own."""
