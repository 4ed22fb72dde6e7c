"""Devices that this machine lacks, for launches and benchmarks; `sae.estimate` has them from the same place."""

from sae.topologies import HBM, chips, mesh, missing

__all__ = ["HBM", "chips", "mesh", "missing"]
