"""A browsable reference of the library, built from docstrings and READMEs: `make docs`."""
