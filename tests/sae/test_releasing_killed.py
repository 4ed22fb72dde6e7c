"""A release that is killed at any point leaves the old one or the new one, and the next call makes it whole."""

import shutil
import sys

import pytest

import sae
from sae import folders
from sae.releasing import checksums
from tests.sae import releasable

# What Python says of itself before it touches the disk (PEP 578).
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree", "exchange")


class Killed(BaseException):
    pass


class Death:
    """From the given event on, nothing touches the disk any more, clean-up included: that is what a kill leaves."""

    def __init__(self):
        self.left, self.events, self.active, self.root = None, [], False, ""

    def __call__(self, event, arguments):
        if not self.active or event not in EVENTS:
            return
        if event == "open" and not str(arguments[0]).startswith(self.root):
            return  # Python's own modules
        self.events.append(event)
        if self.left is not None and len(self.events) > self.left:
            raise Killed


@pytest.fixture(scope="module")
def hook():
    """An audit hook cannot be taken out again, so there is one."""
    death = Death()
    sys.addaudithook(death)
    return death


@pytest.fixture
def death(hook, tmp_path, monkeypatch):
    hook.root = str(tmp_path)
    exchange = folders._exchange

    def exchanged(*names):
        hook("exchange", names)
        result = exchange(*names)
        hook("exchange", names)
        return result

    monkeypatch.setattr(folders, "_exchange", exchanged)
    yield hook
    hook.active, hook.left = False, None


def run(death, left, saes, out):
    """Makes a release that dies at an event, or none; returns how many events there were."""
    death.events, death.left, death.active = [], left, True
    try:
        sae.release(saes, out, overwrite=True)
    except Killed:
        pass
    finally:
        death.active = False
    return len(death.events)


def sweep(death, tmp_path, every):
    """Kills at every so many events, and looks at what is left."""
    first, second = tmp_path / "first", tmp_path / "second"
    releasable.save(first)
    releasable.save(second, seed=1)
    releasable.save(second, site="layer_4/resid_post")
    states = {}
    for name, saes in (("old", first), ("new", second)):
        sae.release(saes, tmp_path / name)
        states[name] = releasable.contents(tmp_path / name)
    assert states["old"] != states["new"]
    out, seen = tmp_path / "out" / "release", []
    shutil.copytree(tmp_path / "old", out)
    events = run(death, None, second, out)
    assert releasable.contents(out) == states["new"]
    for left in range(0, events, every):
        shutil.rmtree(out.parent)
        shutil.copytree(tmp_path / "old", out)
        run(death, left, second, out)
        held = releasable.contents(out)
        seen.append(next((name for name, state in states.items() if state == held), "half"))
        assert checksums.problem(out, checksums.read(out / checksums.NAME)) is None
        sae.release(second, out, overwrite=True)
        assert releasable.contents(out) == states["new"]
        assert not list(out.parent.glob(".release.*"))
    assert seen == sorted(seen, key=["old", "new"].index), seen
    return seen, events


def test_killed_at_every_ninth_touch_of_the_disk(death, tmp_path):
    seen, _ = sweep(death, tmp_path, 9)
    assert {"old", "new"} == set(seen)


@pytest.mark.slow
def test_killed_at_every_touch_of_the_disk(death, tmp_path):
    seen, events = sweep(death, tmp_path, 1)
    assert {"old", "new"} == set(seen) and len(seen) == events > 60


def test_without_an_exchange_the_old_one_comes_back(death, tmp_path, monkeypatch):
    """As on a system that has none: right between the two renames there is no folder, and the next call mends that."""
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    saes, out = tmp_path / "saes", tmp_path / "out" / "release"
    releasable.save(saes)
    sae.release(saes, out)
    shutil.copytree(out, tmp_path / "old")
    releasable.save(saes, site="layer_4/resid_post")
    run(death, None, saes, out)
    renames = [number for number, event in enumerate(death.events) if event == "os.rename"]
    shutil.rmtree(out)
    shutil.copytree(tmp_path / "old", out)
    run(death, renames[-1], saes, out)
    assert not out.exists()
    with folders.beside(out):
        assert releasable.contents(out) == releasable.contents(tmp_path / "old")
    assert sae.release(saes, out).changed and len(sae.releases(out)) == 2
