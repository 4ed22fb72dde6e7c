"""Explainers: `tokens` against texts by hand, and one that is added here, on its way to `sae.latents` and to a page."""

import dataclasses
import doctest
import html
import re

import pytest

import sae
from sae.explainers import EXPLAINERS, Explainer, base, explainer_of, tokens
from sae.latent import Example, Latent
from tests.registering import registered
from tests.sae.models import lettered
from tests.sae.test_looking import autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")


@pytest.fixture(scope="module")
def model():
    return lettered.model()


@pytest.fixture(scope="module")
def sequences():
    return lettered.sequences()


@dataclasses.dataclass(frozen=True)
class Loud(Explainer):
    """For the tests."""

    mark: str = "<!>"
    about = "loud & <b>clear</b>"

    def explain(self, latent):
        return f"{self.mark} {latent.latent} {len(latent.examples)} {len(latent.promoted)} {len(latent.neighbours)}"


@pytest.fixture
def loud():
    base.names()  # the others are found
    with registered((EXPLAINERS, "loud", Loud)):
        yield


def latent(fires=(), promoted=(), largest=None):
    examples = tuple(Example(a, token, "", "d", 0, 0) for token, a in fires)
    largest = max([a for _, a in fires], default=0.0) if largest is None else largest
    return Latent(7, 0.1, largest, examples, promoted, (), ())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (latent([(" sea", 5.0), ("tide", 4.5), ("Sea", 1.0)]), 'fires on "sea", "tide"'),
        (latent([("tide", 4.5), (" sea", 3.0), ("Sea", 2.0)]), 'fires on "sea", "tide"'),  # 5 against 4.5
        (latent([(t, 9.0 - i) for i, t in enumerate("abcdef")]), 'fires on "a", "b", "c", "d"'),
        (latent([("\n", 2.0), (" ", 1.0)], ((" he", 0.5), ("it", -0.1))), 'fires on "↵", " "; promotes "he"'),
        (latent([], (("x", 2.0), ("X", 1.0), ("y", 0.5))), 'does not fire here; promotes "x", "y"'),
        (latent(largest=3.0), "fires here"),
        (latent(), "does not fire here"),
    ],
)
def test_tokens_names_those_of_the_examples_and_those_that_rise(given, text):
    assert explainer_of("tokens").explain(given) == text


def test_the_tokens_named_are_those_of_the_latent(model, sequences):
    described = sae.latents(autoencoder(), model, sequences, explainer="tokens")
    assert sae.latents(autoencoder(), model, sequences)[0].explanation is None
    for one in described:
        strongest, rising = one.examples[0].token, one.promoted[0][0]
        assert f'"{strongest.strip() or strongest}"' in one.explanation
        assert f'promotes "{rising.strip() or rising}"' in one.explanation
    again = sae.latents(autoencoder(), model, sequences, explainer=tokens.Tokens())
    assert [one.explanation for one in again] == [one.explanation for one in described]
    short = sae.latents(autoencoder(), model, sequences, explainer=tokens.Tokens(fires=1, promoted=0))
    assert all(re.fullmatch(r'fires on "[^"]*"', one.explanation) for one in short)


def test_an_explainer_of_ones_own_is_asked_once_for_a_latent_that_is_looked_at(loud, model, sequences):
    numbers = []

    class Counting(Loud):
        def explain(self, latent):
            numbers.append(latent.latent)
            return super().explain(latent)

    described = sae.latents(autoencoder(), model, sequences, examples=2, tokens=3, explainer=Counting())
    assert not numbers
    assert described[3].explanation == described[3].explanation and numbers == [3]
    named = sae.latents(autoencoder(), model, sequences, examples=2, tokens=3, explainer="loud")[3]
    assert named == described[3] and named.explanation.startswith(f"<!> 3 {len(named.examples)} 3 5")


def test_an_explainer_of_ones_own_is_on_the_pages_and_changes_nothing_else(loud, model, sequences, tmp_path):
    bare, told = tmp_path / "bare", tmp_path / "told"
    sae.explore({"a": autoencoder()}, model, sequences, bare)
    sae.explore({"a": autoencoder()}, model, sequences, told, explainer="loud")
    texts = {one.latent: one.explanation for one in sae.latents(autoencoder(), model, sequences, explainer="loud")}
    about = re.escape(html.escape(Loud.about))
    names = {str(file.relative_to(bare)) for file in bare.rglob("*.html")}
    assert names == {"index.html", "a/index.html", *(f"a/{z}.html" for z in texts)} and len(texts) > 5
    for z, text in texts.items():
        page = (told / f"a/{z}.html").read_text("utf-8")
        paragraph = (
            f'<p class="explanation">{html.escape(text)} <span class="note">{html.escape(Loud.about)}</span></p>\n'
        )
        assert page.replace(paragraph, "", 1) == (bare / f"a/{z}.html").read_text("utf-8") != page
    page = (told / "a/index.html").read_text("utf-8")
    cells = re.findall(
        r'<td><a href="(\d+)\.html">.*?</a></td><td>.*?</td><td>.*?</td><td class="text">(.*?)</td>', page
    )
    assert {int(z): html.unescape(text) for z, text in cells} == texts
    without = re.sub(rf'<p class="note">Explanations: {about}\.</p>\n', "", page)
    without = re.sub(r'(</td><td>[^<]*</td><td>[^<]*</td>)<td class="text">.*?</td>', r"\1", without)
    without = without.replace(
        '<th class="text"><button type="button" data-first="text">explanation</button></th>\n', ""
    )
    assert without == (bare / "a/index.html").read_text("utf-8") != page
    assert (told / "index.html").read_bytes() == (bare / "index.html").read_bytes()


def test_pages_are_written_again_for_another_explainer_alone(loud, model, sequences, tmp_path):
    place = tmp_path / "a" / "identity.txt"

    def identity(explainer):
        sae.explore({"a": autoencoder()}, model, sequences, tmp_path, explainer=explainer)
        return place.read_text(), place.stat().st_mtime_ns

    class Newer(Loud):
        version = 2

    Newer.__qualname__ = Newer.__name__ = "Loud"
    first = identity("loud")
    assert identity(Loud()) == first
    others = [identity(explainer)[0] for explainer in (Loud("other"), Newer(), "tokens", None)]
    assert len({first[0], *others}) == 5


def test_what_cannot_explain_is_said(loud, model, sequences, tmp_path):
    with pytest.raises(ValueError, match=r"no explainer is named 'token': did you mean tokens\?"):
        sae.latents(autoencoder(), model, sequences, explainer="token")
    with pytest.raises(ValueError, match=r"explainer is a name, such as .*loud, or an object of a subclass of .*; got"):
        sae.explore(autoencoder(), model, sequences, tmp_path, explainer=Loud)

    class Silent(Loud):
        def explain(self, latent):
            return None

    with pytest.raises(ValueError, match=r"Silent\.explain returns a text, got None for latent 3"):
        sae.latents(autoencoder(), model, sequences, explainer=Silent())[3]


def test_examples_run(model, sequences):
    names = {"sae": sae, "autoencoder": dataclasses.replace(autoencoder(), threshold=autoencoder().threshold + 1e6)}
    names |= {"model": model, "sequences": sequences}
    try:
        result = doctest.testmod(base, extraglobs=names)
    finally:
        EXPLAINERS.remove("strongest")
    assert result.attempted and not result.failed
