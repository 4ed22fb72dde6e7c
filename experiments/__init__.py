"""The launches: flags over library calls. `python -m experiments.NAME` in a checkout, `mishax-NAME` where installed.

A wheel has them as `mishax_experiments`, so their modules import each other relatively. A checkout alone has the
folders: the benchmarks, the notebooks, and what made the shipped model.
"""

from . import stopping

stopping.begin()
