"""The launches: flags over library calls. `python -m experiments.NAME` in a checkout, `mishax-NAME` where installed.

A wheel has them as `mishax_experiments`, so their modules import each other relatively; the folders in here, benchmarks
and what made the shipped model, are of a checkout alone and no part of it.
"""

from . import stopping

stopping.begin()
