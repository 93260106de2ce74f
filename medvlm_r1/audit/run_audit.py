"""The whole audit of a set of questions: each picture decoded once, each finding from that."""

from collections.abc import Mapping, Sequence

from medvlm_r1.audit.fingerprints import fingerprints
from medvlm_r1.audit.leaks import find_leak, pictures, repeated
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
    """Look for leaks, repeated questions and shortcuts, and count what there is.

    Args:
        train, validation: questions; validation may be empty.
        tests: test sets by name.
        faults: lines about rows that cannot be used, passed on into the findings.
        workers: threads that decode. Default: one per core, at most 8.

    Raises:
        BadRowError: a picture is there and cannot be decoded.
    """
    sets = (
        {"train": list(train), "validation": list(validation)} if len(validation) else {"train": list(train)}
    )
    if clash := sets.keys() & tests.keys():
        raise ValueError(f"a test set is called {min(clash)!r}, like another part: give it another name")
    sets |= {name: list(samples) for name, samples in tests.items()}
    handles = pictures([sample for samples in sets.values() for sample in samples])
    prints = dict(zip(handles, fingerprints(list(handles.values()), workers), strict=True))
    ways = [("train", name) for name in sets if name != "train"]
    ways += [("validation", name) for name in tests if "validation" in sets]
    return Audit(
        sets={name: balance(samples) for name, samples in sets.items()},
        tests=tuple(tests),
        faults=tuple(faults),
        images=len(handles),
        images_checked=sum(found is not None for found in prints.values()),
        leaks=tuple(find_leak((a, b), sets[a], sets[b], handles, prints) for a, b in ways),
        repeated={name: repeated(samples, prints) for name, samples in sets.items()},
        shortcuts={name: found for name in tests if (found := shortcuts(sets["train"], sets[name]))},
    )
