"""Run all checks on a set of questions, decoding each image once."""

from collections.abc import Mapping, Sequence

from medvlm_r1.audit.fingerprints import fingerprints
from medvlm_r1.audit.leaks import find_leak, repeated_questions, unique_images
from medvlm_r1.audit.result import Audit, balance
from medvlm_r1.audit.shortcuts import shortcuts
from medvlm_r1.data.sample import VQASample


def audit(
    train: Sequence[VQASample],
    tests: Mapping[str, Sequence[VQASample]],
    validation: Sequence[VQASample] = (),
    faults: Sequence[str] = (),
    workers: int | None = None,
) -> Audit:
    """Find leaks, repeated questions and shortcuts, and count the questions of each kind.

    Args:
        tests: test sets by name.
        faults: lines about unusable rows, copied into the result.
        workers: decoding threads. Default: one per core, at most 8.

    Raises:
        BadRowError: an image file exists and cannot be decoded.
        ValueError: a test set is named ``train`` or ``validation``.
    """
    sets = {"train": list(train)} | ({"validation": list(validation)} if len(validation) else {})
    if clash := sets.keys() & tests.keys():
        raise ValueError(f"a test set is named {min(clash)!r}, like another part: rename it")
    sets |= {name: list(samples) for name, samples in tests.items()}
    handles = unique_images([sample for samples in sets.values() for sample in samples])
    prints = dict(zip(handles, fingerprints(list(handles.values()), workers), strict=True))
    directions = [("train", name) for name in sets if name != "train"]
    directions += [("validation", name) for name in tests if "validation" in sets]
    return Audit(
        sets={name: balance(samples) for name, samples in sets.items()},
        tests=tuple(tests),
        faults=tuple(faults),
        images=len(handles),
        images_checked=sum(print_ is not None for print_ in prints.values()),
        leaks=tuple(find_leak((a, b), sets[a], sets[b], handles, prints) for a, b in directions),
        repeated={name: repeated_questions(samples, prints) for name, samples in sets.items()},
        shortcuts={name: rules for name in tests if (rules := shortcuts(sets["train"], sets[name]))},
    )
