"""Releases: autoencoders in folders that others read, with a card, checksums and records, here and on the hub.

`contents.py` reads what is on record, `layouts.py` says where each autoencoder goes, `card.py` and `saelens_entry.py`
write what people and SAELens read, `making.py` puts a release together, and `pushing.py` uploads it.
"""
