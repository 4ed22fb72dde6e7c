"""Counts of duplicates, against sets of words."""

import itertools
import random

import pytest

from sae.text import Document, Duplicates, Message

WORDS = [
    f"{a}{b}" for a in ("sea", "ship", "king", "harbour", "naïve", "evening") for b in ("", "s", "like", "man", "y")
]


def text(seed, words=300):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def count(documents):
    """The duplicates among documents that all went by."""
    duplicates = Duplicates()
    assert list(duplicates.watch(documents)) == documents
    return duplicates


def changed(text, share, seed=0):
    """A text with a share of its words replaced."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + "x" if draw.random() < share else word for word in text.split())


def documents(*texts):
    return [Document(str(number), "s", text) for number, text in enumerate(texts)]


def index(one, other):
    """The Jaccard index of the runs of five words of two texts, counted out."""
    runs = [set(zip(*(text.lower().split()[first:] for first in range(5)), strict=False)) for text in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_exact_duplicates_are_texts_that_are_the_same():
    sea = text(1)
    assert str(count(documents(sea, text(2), sea, sea))) == "2 of 4 documents are exact duplicates, 0 near"
    assert str(count(documents(sea, text(2)))) == "no duplicates among 2 documents"
    assert str(count(documents(sea, sea))) == "1 of 2 documents is an exact duplicate, 0 near"
    chat = (Message("user", "Who?"), Message("model", "A king."))
    turned = (Message("model", "Who?"), Message("user", "A king."))
    chats = [Document(str(number), "s", messages=messages) for number, messages in enumerate((chat, turned, chat))]
    duplicates = count([*chats, Document("3", "s", "Who?\nA king.")])
    # What differs in who speaks, or in being a chat, is nearly the same and not the same.
    assert (duplicates.exact, duplicates.near) == (1, 2)


def test_near_duplicates_differ_in_a_few_words_or_in_marks():
    sea = text(1)
    marks = "“" + sea.upper().replace(" ", ", ").replace("Ï", "ï") + "” — …"
    duplicates = count(documents(sea, marks, changed(sea, 0.01), text(2), sea[: len(sea) // 2]))
    assert (duplicates.exact, duplicates.near) == (0, 2)
    short = count(documents("The sea", "the sea!", "The ships", "!?", "!!", ""))
    assert (short.exact, short.near) == (0, 1)
    chinese = "".join(map(chr, random.Random(0).choices(range(0x4E00, 0x9000), k=200)))
    duplicates = count(documents(chinese, chinese[:90] + "海" + chinese[91:], chinese[::-1]))
    assert (duplicates.exact, duplicates.near) == (0, 1)
    chinese = "海很平静，船只停在港口里，国王对他说去吧。他走了三天三夜，来到了山脚下的一个村子。"
    duplicates = count(documents(chinese, chinese.replace("，", "。") + "！", chinese[::-1]))
    assert (duplicates.exact, duplicates.near) == (0, 1)


def test_near_is_what_the_index_of_all_runs_says():
    """Over a hundred pairs on either side of 0.8, those within the sketches' error of it excepted."""
    right = wrong = 0
    for seed, share in itertools.product(range(40), (0.002, 0.01, 0.02, 0.04, 0.08, 0.3, -10, -60, -200, -400)):
        one = text(seed, 400)
        # Words are changed, or so many come after.
        other = changed(one, share, seed) if share > 0 else f"{one} {text(seed + 500, -share)}"
        exact = index(one, other)
        if other == one or abs(exact - 0.8) < 0.06:
            continue
        near = count(documents(one, *(text(k) for k in range(900, 903)), other)).near
        right, wrong = right + (near == (exact >= 0.8)), wrong + (near != (exact >= 0.8))
    assert right > 300 and wrong <= 0.04 * right


def test_what_thousands_have_in_common_hides_no_duplicate():
    """Two thirds of each are a beginning that all have; the last documents are near-duplicates of earlier ones."""
    letters = [f"{text(-seed % 3, 400)} {text(seed, 200)}" for seed in range(9, 400)]
    duplicates = count(documents(*letters, *(f"{one} {one[:20]}" for one in letters[200:280])))
    assert (duplicates.exact, duplicates.near) == (0, 80)


def test_memory_is_bounded_and_the_shares_stay():
    """3,000 different documents, a fifth again and a tenth nearly; 256 are remembered."""
    base = [text(seed, 60) for seed in range(3000)]
    again, nearly = base[::5], [f"{one} {one.split()[0]}" for one in base[1::10]]
    order = documents(*base, *again, *nearly)
    random.Random(0).shuffle(order)
    whole, few = Duplicates(), Duplicates(most=256)
    assert list(few.watch(whole.watch(order))) == order
    assert (whole.exact, whole.near, whole.one_in) == (600, 300, 1)
    assert few.documents == 3900 and few.one_in in (16, 32) and 128 < few.looked_at < 700
    assert len(few._sketches) <= 512 and len(few._numbers) <= 256
    assert few.exact / few.looked_at == pytest.approx(600 / 3900, abs=0.06)
    assert few.near / few.looked_at == pytest.approx(300 / 3900, abs=0.05)
    assert str(few).startswith("about ") and str(few).endswith(f"near (by 1 document in {few.one_in})")


def test_counts_do_not_depend_on_the_process():
    """Not on Python's seed of hashes: figures that a launch prints are the same when it runs again."""
    duplicates = Duplicates(most=32)
    for document in documents(*(text(seed, 20) for seed in range(100))):
        duplicates.add(document)
    assert (duplicates.one_in, duplicates.looked_at) == (4, 27)
