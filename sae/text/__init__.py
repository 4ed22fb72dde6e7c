"""Text on its way to the model: documents are read, cut into token sequences, put in order and handed out in batches.

documents = iter_documents("corpus.jsonl")              # reading.py, arrow.py
sequences = cut(documents, tokenizer, 1024)             # cutting.py, chat.py, storing.py
for batch in batches(segment(sequences, 0, 3, 512), 16, tokenizer.pad): ...   # pipeline.py
"""

from sae.text.chat import encode_chat
from sae.text.cutting import cut
from sae.text.documents import Document, Message
from sae.text.pipeline import batches, segment
from sae.text.reading import iter_documents, read_documents
from sae.text.sequences import Sequences, batch_at, is_text

__all__ = [
    "Document",
    "Message",
    "Sequences",
    "batch_at",
    "batches",
    "cut",
    "encode_chat",
    "is_text",
    "iter_documents",
    "read_documents",
    "segment",
]
