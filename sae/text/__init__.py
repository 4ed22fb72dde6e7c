"""Text on its way to the model: documents are read, cut into token sequences, shuffled and divided into segments.

documents = iter_documents("corpus.jsonl")              # reading.py, opening.py, records.py, arrow.py, tally.py
train, held_out = split(read_documents("corpus.jsonl")) # splitting.py: by a hash of each document's text
sequences = cut(documents, tokenizer, 1024)             # cutting.py, chat.py, storing.py
train, held_out = split(sequences)                      # the same sides, after cutting
train, held_out = prepare("corpus.jsonl", tokenizer, 1024)   # preparing.py: all of these, large texts through files
fourth = segment(sequences, 0, 3, 512)                  # pipeline.py
"""

from sae.text.chat import encode_chat
from sae.text.checking import as_sequences, check_sequences
from sae.text.cutting import cut
from sae.text.documents import Document, Message
from sae.text.duplicates import Duplicates
from sae.text.origin import Origin
from sae.text.pipeline import segment
from sae.text.preparing import prepare
from sae.text.reading import iter_documents, read_documents
from sae.text.sequences import Sequences, batch_at, is_text
from sae.text.shipped import sample
from sae.text.splitting import split, survey
from sae.text.tally import Tally, TextWarning

__all__ = [
    "Document",
    "Duplicates",
    "Message",
    "Origin",
    "Sequences",
    "Tally",
    "TextWarning",
    "as_sequences",
    "batch_at",
    "check_sequences",
    "cut",
    "encode_chat",
    "is_text",
    "iter_documents",
    "prepare",
    "read_documents",
    "sample",
    "segment",
    "split",
    "survey",
]
