"""Strings and chats in which tokenizers differ: runs of spaces, marks, added tokens, bytes, and what looks so."""

import random

_WORDS = """\
the quick brown foxes, jumped! over 12345 lazy_dogs naïve 東京 🙂 e=mc² don't http://x.y/z?q=1 def f(x): #######
===== ------ .... \'\'\' élan Ελλάδα \u200b \ufeff \u3000 ﷺ \x1b < > </ <t table> [ ] <unk <start_of_ turn> ▁ ▁▁ ▁▁▁"""
_MARKS = """\
<start_of_turn> <end_of_turn> <start_of_image> <table> </table> <h1> <unused0> <unused99> <mask> [multimodal] <pad>
<eos> <bos> <unk> <0x0A> <think> <|im_start|> <tool_call> </tool_call>"""
WORDS, MARKS = (one.replace("\n", " ").split(" ") for one in (_WORDS, _MARKS))
SPACES = (
    *("\n", "\n\n", "\t", "\t\t", "\r\n"),
    *(" " * n for n in (1, 1, 1, 2, 3, 4, 5, 7, 8, 16, 30, 31, 32, 33, 63, 64, 65)),
    *("\n" * n for n in (3, 30, 31, 32, 33, 63)),
    *("\t" * n for n in (3, 31, 33)),
)


def text(random: random.Random, parts: int, marks: float) -> str:
    """A text of at most so many parts, a share of which are marks."""
    result = ""
    for _ in range(random.randrange(1, parts)):
        draw = random.random()
        if draw < marks:
            result += random.choice(MARKS)
        elif draw < marks + 0.3:
            result += random.choice(SPACES)
        elif draw < 0.95:
            result += random.choice(WORDS)
        else:
            blocks = (range(32, 127), range(160, 0xD7FF), range(0x10000, 0x1FFFF))
            result += chr(random.choice(random.choice(blocks)))
        result += " " * (random.random() < 0.4)
    return result


def strings(count: int) -> list[str]:
    """Some texts, and runs of spaces of every length."""
    source = random.Random(0)
    runs = [before + " " * n + after for n in range(1, 100) for before, after in (("", ""), ("x", "y"), ("\n", "\n"))]
    return [*(text(source, 14, 0.15) for _ in range(count - min(count // 4, len(runs)))), *runs[: count // 4]]


def chats(count: int) -> list[dict]:
    """Chats, as `messages`, and whether the head of the model's turn follows."""
    source = random.Random(1)
    result = []
    for _ in range(count):
        system = [{"role": "system", "content": text(source, 8, 0.05)}] * (source.random() < 0.3)
        turns = [
            {"role": "assistant" if turn % 2 else "user", "content": text(source, 14, 0.05)}
            for turn in range(source.randrange(1, 7))
        ]
        result.append({"messages": system + turns, "add_generation_prompt": source.random() < 0.5})
    return result
