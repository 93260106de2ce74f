"""Which questions of one set show a picture of another set, and in what form."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from posixpath import basename

from medvlm_r1.audit.compare_pair import COPIES, EXACT, NAMED, NEIGHBOUR, View, classify_pair, view
from medvlm_r1.audit.fingerprints import Candidate, Fingerprint, candidates, in_parallel
from medvlm_r1.data.sample import ImageHandle, VQASample

Prints = Mapping[str, Fingerprint | None]  # by picture name; None where the picture is not on disk


@dataclass(frozen=True)
class Pair:
    """Two pictures that are, or may be, one.

    Attributes:
        kind: one of ``COPIES``, ``NEIGHBOUR`` or ``NAMED``.
        first: name of the picture in the set that is seen earlier (training, or validation).
        second: name of the other one.
        distance: 1 minus the correlation of fine structure; 0 for exact copies, ``None`` where pixels
            were not compared.
    """

    kind: str
    first: str
    second: str
    distance: float | None


@dataclass(frozen=True)
class Leak:
    """What one set gives away about another.

    Attributes:
        source: the set that is seen earlier, e.g. ``train``.
        target: the set that should be new, e.g. a test set.
        n: questions of ``target``.
        questions: of those, how many show a copy of a picture of ``source``.
        kinds: kind -> questions of ``target`` whose nearest picture in ``source`` is of that kind.
        sources: ids of the questions of ``source`` that show the original of such a copy.
        pairs: the pictures, nearest kind first.
    """

    source: str
    target: str
    n: int
    questions: int
    kinds: dict[str, int]
    sources: tuple[str, ...]
    pairs: tuple[Pair, ...]

    @property
    def share(self) -> float:
        """Of the target's questions, the share that shows a copy."""
        return self.questions / self.n


def find_leak(
    names: tuple[str, str],
    source: Sequence[VQASample],
    target: Sequence[VQASample],
    handles: Mapping[str, ImageHandle],
    prints: Prints,
) -> Leak:
    """Compare every picture of ``target`` with every one of ``source``.

    Paths are compared always, bytes and pixels where both pictures are on disk. Where they are not, equal
    file names in different folders are listed, if each set has the name once; they count as no copy.
    """
    first, second = pictures(source), pictures(target)
    pairs = _exact(first, second, prints)
    seen = {(pair.first, pair.second) for pair in pairs}
    pairs += _alike(first, second, handles, prints, seen)
    order = {kind: k for k, kind in enumerate((*COPIES, NEIGHBOUR, NAMED))}
    pairs.sort(key=lambda pair: (order[pair.kind], pair.distance or 0.0, pair.second, pair.first))

    nearest: dict[str, str] = {}
    for pair in pairs:
        nearest.setdefault(pair.second, pair.kind)
    kinds: dict[str, int] = dict.fromkeys(order, 0)
    for sample in target:
        if found := [nearest[h.name] for h in sample.images if h.name in nearest]:
            kinds[min(found, key=order.get)] += 1
    originals = {pair.first for pair in pairs if pair.kind in COPIES}
    return Leak(
        source=names[0],
        target=names[1],
        n=len(target),
        questions=sum(kinds[kind] for kind in COPIES),
        kinds={kind: count for kind, count in kinds.items() if count},
        sources=tuple(s.id for s in source if any(h.name in originals for h in s.images)),
        pairs=tuple(pairs),
    )


def pictures(samples: Sequence[VQASample]) -> dict[str, ImageHandle]:
    """Every picture once, by name."""
    return {handle.name: handle for sample in samples for handle in sample.images}


def repeated(samples: Sequence[VQASample], prints: Prints) -> list[tuple[str, str]]:
    """Questions asked twice: ids of the first and of each later one with its words, options and pictures.

    Options may stand in another order. A picture is the same by its pixels, or by its path where it is
    not on disk.
    """
    first: dict[tuple, str] = {}
    found = []
    for sample in samples:
        shown = tuple(p.pixels if (p := prints.get(h.name)) else h.name for h in sample.images)
        key = (" ".join(sample.question.split()), frozenset(sample.options), shown)
        if key in first:
            found.append((first[key], sample.id))
        first.setdefault(key, sample.id)
    return found


def _exact(first: Mapping, second: Mapping, prints: Prints) -> list[Pair]:
    places: dict[str, dict[str, list[str]]] = {kind: defaultdict(list) for kind in EXACT}

    def keys(name: str) -> dict[str, str]:
        known = prints.get(name)
        return {"same file": name} | (
            {"same bytes": known.bytes, "same pixels": known.pixels} if known else {}
        )

    for name in first:
        for kind, key in keys(name).items():
            places[kind][key].append(name)
    pairs = {}
    for name in second:
        for kind, key in keys(name).items():
            for other in places[kind].get(key, ()):
                pairs.setdefault((other, name), Pair(kind, other, name, 0.0))
    here, there = (_unique_names(names) for names in (first, second))
    for file, name in there.items():
        other = here.get(file)
        if other and (other, name) not in pairs and not (prints.get(other) and prints.get(name)):
            pairs[other, name] = Pair(NAMED, other, name, None)
    return list(pairs.values())


def _unique_names(names: Mapping) -> dict[str, str]:
    """File name -> picture, for file names that stand in one folder only: 1.png says nothing."""
    folders = defaultdict(list)
    for name in names:
        folders[basename(name)].append(name)
    return {file: found[0] for file, found in folders.items() if len(found) == 1}


def _alike(first: Mapping, second: Mapping, handles: Mapping, prints: Prints, seen: set) -> list[Pair]:
    mine, theirs = ([name for name in names if prints.get(name)] for names in (first, second))
    if not mine or not theirs:
        return []
    found = candidates([prints[name] for name in mine], [prints[name] for name in theirs])
    found = [c for c in found if (mine[c.first], theirs[c.second]) not in seen]

    @lru_cache(maxsize=2048)  # 9 kB each
    def seen_again(name: str) -> View:
        return prints[name].view or view(handles[name].load())

    def judged(c: Candidate) -> Pair | None:
        one, other = mine[c.first], theirs[c.second]
        kind, distance = classify_pair(seen_again(one), seen_again(other), c.turn)
        return Pair(kind, one, other, distance) if kind else None

    pairs: dict[tuple[str, str], Pair] = {}
    for pair in filter(None, in_parallel(judged, found, "Comparing images")):
        known = pairs.get((pair.first, pair.second))  # a pair may be compared both ways round
        if known is None or pair.distance < known.distance:
            pairs[pair.first, pair.second] = pair
    return list(pairs.values())
