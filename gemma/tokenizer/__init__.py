"""Text to token ids and back, with the ids of transformers, from every file that a vocabulary may come in.

text.py          `Tokenizer`, the class that everybody uses
engines.py       encodes and decodes: by SentencePiece, or by the package `tokenizers`
pieces.py        writes a SentencePiece model's bytes, and changes them so that a text gives transformers' ids
added.py         tokens that stand beside a vocabulary, and their places in a text
vocabulary.py    reads tokenizer.json as a SentencePiece model, and writes it from one
settings.py      tokenizer_config.json and the other small files
chat.py          Gemma's own chat template, and the messages that templates get
sandbox.py       runs a template
chat_methods.py  `Tokenizer.chat` and its kin
turns.py         from a chat to token ids: its marks, and the tokens that the model says
files.py         reads a folder into a Tokenizer, and writes it back
"""

from gemma.tokenizer.pieces import model_from_pieces
from gemma.tokenizer.text import Tokenizer

__all__ = ["Tokenizer", "model_from_pieces"]
