"""The audit at the start of a run: asked of the built questions, kept on disk by their content."""

import hashlib
import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

from filelock import FileLock

from medvlm_r1.audit.leaks import pictures
from medvlm_r1.audit.result import Audit
from medvlm_r1.audit.run_audit import audit
from medvlm_r1.data.images.content_key import image_digest
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.images.validate import WORTH_KEEPING
from medvlm_r1.data.sample import ImageHandle, VQASample
from medvlm_r1.data.splits import Questions
from medvlm_r1.runs.progress import track

logger = logging.getLogger(__name__)

OnLeak = Literal["warn", "drop", "fail"]
VERSION = 1  # of the findings: raise it when the same questions would be judged otherwise


class PreRunAudit:
    """Audits questions once; the same questions and pictures again are answered from disk.

    Args:
        on_leak: what happens where training shows a picture of a test set: ``warn`` says so, ``drop`` takes
            those training questions out (never a test question), ``fail`` stops.
        cache: folder for findings; ``None`` keeps none.

    Raises:
        ValueError: ``on_leak`` is none of the three.
    """

    def __init__(self, on_leak: OnLeak = "warn", cache: str | Path | None = None) -> None:
        if on_leak not in ("warn", "drop", "fail"):
            raise ValueError(f"audit.on_leak is {on_leak!r}: use 'warn', 'drop' or 'fail'")
        self.on_leak, self.cache = on_leak, None if cache is None else Path(cache)

    def __call__(self, questions: Questions) -> tuple[Questions, Audit]:
        """The questions to run with, and what was found.

        Raises:
            ValueError: there is a leak and ``on_leak`` is ``fail``, or nothing is left after dropping.
        """
        found = self._found(questions)
        if found.leaking and self.on_leak == "fail":
            raise ValueError(
                f"audit: {found.verdict}. audit.on_leak=drop takes {len(found.leaking)} training questions "
                "out, audit.on_leak=warn labels the results"
            )
        if found.leaking and self.on_leak == "drop":
            kept = [sample for sample in questions.train if sample.id not in found.leaking]
            found = found.after_dropping(len(questions.train) - len(kept))
            questions = replace(questions, train=kept)
        return questions, found

    def _found(self, questions: Questions) -> Audit:
        if self.cache is None:
            return _audited(questions)
        self.cache.mkdir(parents=True, exist_ok=True)
        path = self.cache / f"{content_key(questions)}.json"
        with FileLock(f"{path}.lock"):  # ranks and parallel runs come here together: one of them looks
            if path.is_file():
                return Audit.from_dict(json.loads(path.read_text(encoding="utf-8")))
            found = _audited(questions)
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(found.as_dict(), ensure_ascii=False), encoding="utf-8")
            partial.replace(path)
        return found


def _audited(questions: Questions) -> Audit:
    logger.info("auditing the questions, once: the findings are kept")
    return audit(questions.train, questions.test, questions.validation, questions.skipped)


def content_key(questions: Questions) -> str:
    """Digest of all that findings follow from: questions, bytes of pictures, and :data:`VERSION`."""
    sets = {"train": questions.train, "validation": questions.validation, **questions.test}
    handles = pictures([sample for samples in sets.values() for sample in samples])
    digests = _contents(handles)
    lines = [json.dumps([name, [_line(s, digests) for s in samples]]) for name, samples in sets.items()]
    whole = hashlib.sha256(json.dumps([VERSION, questions.skipped]).encode())
    for line in lines:
        whole.update(hashlib.sha256(line.encode()).digest())
    return whole.hexdigest()[:24]


def _line(sample: VQASample, digests: dict[str, str]) -> list:
    fields = {key: value for key, value in vars(sample).items() if key != "images"}
    return [fields, [[h.name, digests[h.name]] for h in sample.images]]


def _contents(handles: dict[str, ImageHandle]) -> dict[str, str]:
    """What pictures show, without decoding or rendering: bytes of a file, parameters of a rendering."""
    digests: dict[Path, str] = {}  # a volume's slices share their file
    with DigestCache() if len(handles) >= WORTH_KEEPING else nullcontext() as known:

        def content(handle: ImageHandle) -> str:
            if not isinstance(handle, ImageFile | DicomImage | NiftiImage):
                return repr(handle)
            if handle.path not in digests:
                digests[handle.path] = image_digest(handle, known) or "absent"
            return f"{handle!r} {digests[handle.path]}"

        found = track(handles.items(), "Looking for changed images", len(handles))
        return {name: content(handle) for name, handle in found}
