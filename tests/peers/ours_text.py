"""Our half of `make test-peers` for texts: ids, chats and greedy answers; see `ours.py`.

python -m tests.peers.ours_text write FOLDER
.venv-peers/bin/python tests/peers/theirs_text.py FOLDER
python -m tests.peers.ours_text read FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np

import gemma
from gemma.checkpoints import gguf, sources, tokenizers
from gemma.tokenizer import Tokenizer, chat
from tests.gemma import texts

PROMPT, NEW = "In the beginning God created", 24


def write(folder: Path) -> None:
    """The texts, the shipped model as `gemma.save` writes it, and the tokenizer of the real Gemma 3 270M."""
    model = gemma.load("gemma2-tiny")
    gemma.save(model, folder / "text-tiny", "huggingface")
    real = gguf.tokenizer(gguf.scan(sources.find("gemma3-270m").weights))
    (folder / "text-real").mkdir(parents=True)
    tokenizers.write(gemma.Model({}, model.config, real), folder / "text-real", transformers=True)
    values = {"strings": texts.strings(2000), "chats": texts.chats(500), "prompt": PROMPT, "new": NEW}
    (folder / "texts.json").write_text(json.dumps({**values, "template": chat.GEMMA}), encoding="utf-8")


def read(folder: Path) -> None:
    """What transformers made of all that, and a fine-tune as it saves one.

    Raises:
      ValueError: if an id differs.
    """
    values = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    for name in ("text-tiny", "text-real", "text-tiny-tuned", "text-real-tuned", "text-tiny-tuned-lora"):
        theirs = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(folder / name / "tokenizer.json")
        same = {"strings": [tokenizer.encode(one) for one in values["strings"]] == theirs["strings"]}
        for key, literal in (("chats", False), ("literal", True)):
            same[key] = [tokenizer.chat(**one, literal=literal) for one in values["chats"]] == theirs[key]
        if "answer" in theirs:
            model = gemma.load(folder / name)
            prompt = model.tokenizer.encode(PROMPT)
            answer = gemma.generate(model, [prompt], max_new_tokens=NEW).tokens[0].tolist()
            same["answer"] = [*prompt, *answer][: len(theirs["answer"])] == theirs["answer"]
            logits = np.asarray(model.apply(np.array([theirs["answer"]])))
            off = float(np.abs(logits - np.array(theirs["logits"])).max())
            same["logits"] = off < 1e-4
            print(f"{name}: {len(theirs['answer']) - len(prompt)} greedy tokens, logits within {off:.1e}")
        print(f"{name}: {len(values['strings'])} strings, {len(values['chats'])} chats: {same}")
        if not all(same.values()):
            raise ValueError(f"{name}: our ids are not transformers': {same}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
