"""Text to token ids and back, as transformers does it, from whichever file the vocabulary comes.

text.py        Tokenizer: what everybody uses
engines.py     from text to ids: SentencePiece, or the package `tokenizers`
pieces.py      a SentencePiece model's bytes: written, and changed so that a text gives transformers' ids
added.py       tokens that stand beside a vocabulary, and where a text has them
vocabulary.py  tokenizer.json: read as a SentencePiece model, and written from one
settings.py    tokenizer_config.json and the other small files
chat.py        Gemma's own chat template, and what templates get
sandbox.py     what runs a template
files.py       from a folder to a Tokenizer, and back
"""

from gemma.tokenizer.pieces import model_from_pieces
from gemma.tokenizer.text import Tokenizer

__all__ = ["Tokenizer", "model_from_pieces"]
