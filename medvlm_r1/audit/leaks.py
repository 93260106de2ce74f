"""Find questions of one set that show an image of another set."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from posixpath import basename

from medvlm_r1.audit.compare_pair import COPIES, EXACT, NAMED, NEIGHBOUR, View, classify_pair, view
from medvlm_r1.audit.fingerprints import Candidate, Fingerprint, candidates, in_parallel
from medvlm_r1.data.sample import ImageHandle, VQASample

Refused = Sequence[tuple[ImageHandle, ...]]  # images of refused rows
Prints = Mapping[str, Fingerprint | None]  # by image name; None if the file does not exist


@dataclass(frozen=True)
class Pair:
    """Two images that are, or may be, copies."""

    kind: str  # one of COPIES, NEIGHBOUR or NAMED
    first: str  # name of the image in the source set (training or validation)
    second: str  # name of the image in the target set
    distance: float | None  # 1 - correlation of fine structure; 0: exact copy, None: pixels not compared


@dataclass(frozen=True)
class Leak:
    """Images of one set that recur in another."""

    source: str  # the set that the model sees first, e.g. "train"
    target: str  # the set that should be unseen, e.g. a test set
    n: int  # number of questions of the target
    questions: int  # number of those that show a copy of an image of the source
    kinds: dict[str, int]  # kind -> questions of the target whose closest source image is of that kind
    sources: tuple[str, ...]  # ids of the source's questions that show the original of a copy
    pairs: tuple[Pair, ...]  # closest kind first
    of_refused: int = 0  # number of ``questions`` whose originals are in refused rows of the source alone
    refused: int = 0  # number of refused rows of the target, not in ``n``, that show a copy
    same_group: int = 0  # number of other questions of the target whose group (patient) is in the source
    alike_group: tuple[str, str] | None = None  # groups of source and target that may be one, as spelt

    @property
    def share(self) -> float:
        """Share of the target's questions that show a copy."""
        return self.questions / self.n


def find_leak(
    names: tuple[str, str],
    source: Sequence[VQASample],
    target: Sequence[VQASample],
    handles: Mapping[str, ImageHandle],
    prints: Prints,
    refused: tuple[Refused, Refused] = ((), ()),
) -> Leak:
    """Compare every image of ``target`` with every image of ``source``.

    Compares paths always, bytes and pixels if both files exist. Otherwise lists equal file names in different
    folders, if each set has the name once; these do not count as copies.

    Args:
        refused: images of the rows of ``source`` and ``target`` that cannot be used: a question that shows a
            copy of one counts, and a refused row of the target that shows a copy is counted apart.
    """
    good = unique_images(source)
    first, second = (
        images | {handle.name: handle for row in rows for handle in row}
        for images, rows in zip((good, unique_images(target)), refused, strict=True)
    )
    pairs = _exact_pairs(first, second, prints)
    seen = {(pair.first, pair.second) for pair in pairs}
    pairs += _similar_pairs(first, second, handles, prints, seen)
    order = {kind: k for k, kind in enumerate((*COPIES, NEIGHBOUR, NAMED))}
    pairs.sort(key=lambda pair: (order[pair.kind], pair.distance or 0.0, pair.second, pair.first))

    nearest: dict[str, str] = {}
    for pair in pairs:
        nearest.setdefault(pair.second, pair.kind)
    kinds: dict[str, int] = dict.fromkeys(order, 0)
    copies = {pair.second for pair in pairs if pair.kind in COPIES}
    copies_of_good = {pair.second for pair in pairs if pair.kind in COPIES and pair.first in good}
    groups = {sample.image_group for sample in source}
    of_refused = same_group = 0
    for sample in target:
        shown = {handle.name for handle in sample.images}
        if matches := [nearest[name] for name in shown if name in nearest]:
            kinds[min(matches, key=order.get)] += 1
        of_refused += bool(shown & copies) and not shown & copies_of_good
        same_group += not shown & copies and sample.image_group in groups
    originals = {pair.first for pair in pairs if pair.kind in COPIES}
    return Leak(
        source=names[0],
        target=names[1],
        n=len(target),
        questions=sum(kinds[kind] for kind in COPIES),
        kinds={kind: count for kind, count in kinds.items() if count},
        sources=tuple(s.id for s in source if any(h.name in originals for h in s.images)),
        pairs=tuple(pairs),
        of_refused=of_refused,
        refused=sum(any(handle.name in copies for handle in row) for row in refused[1]),
        same_group=same_group,
        alike_group=_alike_group(groups, {sample.image_group for sample in target}),
    )


def _alike_group(source: set[str], target: set[str]) -> tuple[str, str] | None:
    """Return two groups that differ only in case, spaces or leading zeros: one patient may be spelt twice."""

    def plain(group: str) -> str:
        return re.sub(r"(?<!\d)0+(?=\d)", "", "".join(group.casefold().split()))

    known = {plain(group): group for group in source}
    for group in sorted(target - source):
        if (other := known.get(plain(group))) is not None:
            return other, group
    return None


def unique_images(samples: Sequence[VQASample]) -> dict[str, ImageHandle]:
    """Return all images by name, each once."""
    return {handle.name: handle for sample in samples for handle in sample.images}


def repeated_questions(samples: Sequence[VQASample], prints: Prints) -> list[tuple[str, str]]:
    """Return id pairs (first, later) of questions with equal text, options in any order, and images.

    Images are equal if their pixels are, or their paths if a file does not exist.
    """
    first: dict[tuple, str] = {}
    repeats = []
    for sample in samples:
        shown = tuple(p.pixels if (p := prints.get(h.name)) else h.name for h in sample.images)
        key = (" ".join(sample.question.split()), frozenset(sample.options), shown)
        if key in first:
            repeats.append((first[key], sample.id))
        first.setdefault(key, sample.id)
    return repeats


def _exact_pairs(first: Mapping, second: Mapping, prints: Prints) -> list[Pair]:
    names: dict[str, dict[str, list[str]]] = {kind: defaultdict(list) for kind in EXACT}

    def keys(name: str) -> dict[str, str]:
        if known := prints.get(name):
            return {"same file": name, "same bytes": known.bytes, "same pixels": known.pixels}
        return {"same file": name}

    for name in first:
        for kind, key in keys(name).items():
            names[kind][key].append(name)
    pairs = {}
    for name in second:
        for kind, key in keys(name).items():
            for other in names[kind].get(key, ()):
                pairs.setdefault((other, name), Pair(kind, other, name, 0.0))
    first_files, second_files = _unique_files(first), _unique_files(second)
    for file, name in second_files.items():
        other = first_files.get(file)
        if other and (other, name) not in pairs and not (prints.get(other) and prints.get(name)):
            pairs[other, name] = Pair(NAMED, other, name, None)
    return list(pairs.values())


def _unique_files(names: Mapping) -> dict[str, str]:
    """File name -> image, for file names that occur once: 1.png in many folders is no evidence."""
    folders = defaultdict(list)
    for name in names:
        folders[basename(name)].append(name)
    return {file: names[0] for file, names in folders.items() if len(names) == 1}


def _similar_pairs(
    first: Mapping, second: Mapping, handles: Mapping, prints: Prints, seen: set
) -> list[Pair]:
    sources, targets = ([name for name in names if prints.get(name)] for names in (first, second))
    if not sources or not targets:
        return []
    unclear = candidates([prints[name] for name in sources], [prints[name] for name in targets])
    unclear = [c for c in unclear if (sources[c.first], targets[c.second]) not in seen]

    @lru_cache(maxsize=2048)  # 9 kB each
    def load_view(name: str) -> View:
        return prints[name].view or view(handles[name].load())

    def classify(c: Candidate) -> Pair | None:
        one, other = sources[c.first], targets[c.second]
        kind, distance = classify_pair(load_view(one), load_view(other), c.turn)
        return Pair(kind, one, other, distance) if kind else None

    pairs: dict[tuple[str, str], Pair] = {}
    for pair in filter(None, in_parallel(classify, unclear, "Comparing images")):
        known = pairs.get((pair.first, pair.second))  # a pair may be a candidate under several turns
        if known is None or pair.distance < known.distance:
            pairs[pair.first, pair.second] = pair
    return list(pairs.values())
