"""Run all checks on a set of questions, decoding each image once."""

from collections.abc import Mapping, Sequence

from medvlm_r1.audit.fingerprints import Fingerprint, fingerprint, fingerprints, in_parallel
from medvlm_r1.audit.leaks import Refused, find_leak, repeated_questions, unique_images
from medvlm_r1.audit.result import Audit, balance
from medvlm_r1.audit.shortcuts import shortcuts
from medvlm_r1.data.images.notes import counted
from medvlm_r1.data.sample import BadRowError, ImageHandle, VQASample


def audit(
    train: Sequence[VQASample],
    tests: Mapping[str, Sequence[VQASample]],
    validation: Sequence[VQASample] = (),
    faults: Sequence[str] = (),
    workers: int | None = None,
    refused: Mapping[str, Refused] | None = None,
    apart: str = "",
) -> Audit:
    """Find leaks, repeated questions and shortcuts, and count the questions of each kind.

    Args:
        tests: test sets by name.
        faults: lines about unusable rows, copied into the result.
        workers: decoding threads. Default: one per core, at most 8.
        refused: set -> images of its rows that cannot be used, which are compared too.
        apart: why equal paths of two sets need not be one image, for the verdict.

    Raises:
        BadRowError: an image file exists and cannot be decoded.
        ValueError: a test set is named ``train`` or ``validation``.
    """
    sets = {"train": list(train)} | ({"validation": list(validation)} if len(validation) else {})
    if clash := sets.keys() & tests.keys():
        raise ValueError(f"a test set is named {min(clash)!r}, like another part: rename it")
    sets |= {name: list(samples) for name, samples in tests.items()}
    refused = {name: [row for row in (refused or {}).get(name, ()) if row] for name in sets}
    images = {name: unique_images(samples) for name, samples in sets.items()}
    handles = {name: handle for of_set in images.values() for name, handle in of_set.items()}
    prints: dict = dict(zip(handles, fingerprints(list(handles.values()), workers), strict=True))
    checked = {name: sum(prints[image] is not None for image in of_set) for name, of_set in images.items()}
    others = {h.name: h for rows in refused.values() for row in rows for h in row if h.name not in handles}
    found = in_parallel(_fingerprint_or_none, list(others.values()), "Auditing refused rows", workers)
    prints |= zip(others, found, strict=True)
    directions = [("train", name) for name in sets if name != "train"]
    directions += [("validation", name) for name in tests if "validation" in sets]
    return Audit(
        sets={name: balance(samples) for name, samples in sets.items()},
        tests=tuple(tests),
        faults=tuple(faults),
        images=len(handles),
        images_checked=sum(prints[name] is not None for name in handles),
        leaks=tuple(
            find_leak((a, b), sets[a], sets[b], handles | others, prints, (refused[a], refused[b]))
            for a, b in directions
        ),
        repeated={name: repeated_questions(samples, prints) for name, samples in sets.items()},
        shortcuts={name: rules for name in tests if (rules := shortcuts(sets["train"], sets[name]))},
        checked=checked,
        refused={name: len(rows) for name, rows in refused.items()},
        notes={
            name: counted({image: print_.notes for image in of_set if (print_ := prints[image])})
            for name, of_set in images.items()
        },
        apart=apart,
    )


def _fingerprint_or_none(handle: ImageHandle) -> Fingerprint | None:
    """Fingerprint of a refused row's image, which may be damaged as well."""
    try:
        return fingerprint(handle)
    except BadRowError:
        return None
