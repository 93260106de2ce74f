"""The audit at the start of a run, cached on disk by the content of the questions."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

from filelock import FileLock

from medvlm_r1.audit.leaks import unique_images
from medvlm_r1.audit.result import Audit
from medvlm_r1.audit.run_audit import audit
from medvlm_r1.data.images.arrow import ArrowImage
from medvlm_r1.data.images.content_key import image_digest
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.images.validate import WORTH_KEEPING
from medvlm_r1.data.sample import ImageHandle, VQASample
from medvlm_r1.data.splits import Questions, Source
from medvlm_r1.runs.durable import write_whole
from medvlm_r1.runs.progress import track

logger = logging.getLogger(__name__)

OnLeak = Literal["warn", "drop", "fail"]
VERSION = 2  # raise it when a change of the code gives another result for the same questions


class PreRunAudit:
    """Audit the questions of a run; results for the same questions and images come from the cache.

    Args:
        on_leak: reaction to training questions that show an image of a test set: ``warn`` logs them, ``drop``
            removes them from training (never test questions), ``fail`` stops the run.
        cache: folder for results; ``None`` disables it.

    Raises:
        ValueError: ``on_leak`` is none of the three.
    """

    def __init__(self, on_leak: OnLeak = "warn", cache: str | Path | None = None) -> None:
        if on_leak not in ("warn", "drop", "fail"):
            raise ValueError(f"audit.on_leak is {on_leak!r}: use 'warn', 'drop' or 'fail'")
        self.on_leak, self.cache = on_leak, None if cache is None else Path(cache)

    def __call__(self, questions: Questions) -> tuple[Questions, Audit]:
        """Return the questions to run with, and the audit.

        Raises:
            ValueError: there is a leak and ``on_leak`` is ``fail``, or no training question is left.
        """
        result = self._audit(questions)
        if result.leaking and self.on_leak == "fail":
            raise ValueError(
                f"audit: {result.verdict}. Use audit.on_leak=drop to remove {len(result.leaking)} training "
                "questions, or audit.on_leak=warn to label the results"
            )
        if result.leaking and self.on_leak == "drop":
            clean = [sample for sample in questions.train if sample.id not in result.leaking]
            result = replace(result, dropped=len(questions.train) - len(clean))
            questions = replace(questions, train=clean)
        return questions, result

    def _audit(self, questions: Questions) -> Audit:
        digests = _image_digests(questions)
        if self.cache is None:
            result = _run(questions)
        else:
            self.cache.mkdir(parents=True, exist_ok=True)
            path = self.cache / f"{content_key(questions, digests)}.json"
            with FileLock(f"{path}.lock"):  # of concurrent ranks and runs, one audits
                if path.is_file():
                    result = Audit.from_dict(json.loads(path.read_text(encoding="utf-8")))
                else:
                    result = _run(questions)
                    write_whole(path, json.dumps(result.as_dict(), ensure_ascii=False))
        return replace(result, data_sha256=data_digests(questions, digests))


def _run(questions: Questions) -> Audit:
    logger.info("auditing the questions; the result is cached")
    refused: dict[str, list[tuple[ImageHandle, ...]]] = {}
    for part, _, images in questions.refused:
        refused.setdefault(part, []).append(images)
    return audit(questions.train, questions.test, questions.validation, questions.skipped, refused=refused)


def content_key(questions: Questions, digests: Mapping[str, str | None]) -> str:
    """Digest of all inputs of an audit: questions, paths and digests of images, and :data:`VERSION`."""
    key = hashlib.sha256(json.dumps([VERSION, questions.skipped]).encode())
    for name, samples in _sets(questions).items():
        line = json.dumps([name, [_line(sample, digests) for sample in samples]])
        key.update(hashlib.sha256(line.encode()).digest())
    refused = [[part, line, _images(images, digests)] for part, line, images in questions.refused]
    key.update(json.dumps(refused).encode())
    return key.hexdigest()[:24]


def data_digests(questions: Questions, digests: Mapping[str, str | None]) -> dict[str, str]:
    """Set -> SHA-256 of its questions, answers and image files, in order; the same in another folder."""

    def line(sample: VQASample) -> list:
        images = [digests[image.name] or image.name for image in sample.images]
        return [sample.id, sample.question, sample.options, sample.answer, images]

    lines = {name: json.dumps([line(s) for s in samples]) for name, samples in _sets(questions).items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in lines.items()}


def _sets(questions: Questions) -> dict[str, Source]:
    return {"train": questions.train, "validation": questions.validation, **questions.test}


def _line(sample: VQASample, digests: Mapping[str, str | None]) -> list:
    fields = {key: value for key, value in vars(sample).items() if key not in ("images", "place")}
    return [fields, _images(sample.images, digests)]


def _images(handles: Sequence[ImageHandle], digests: Mapping[str, str | None]) -> list[list[str]]:
    return [[h.name, " ".join(filter(None, (repr(h), digests[h.name])))] for h in handles]


def _image_digests(questions: Questions) -> dict[str, str | None]:
    """Image name -> digest of its file, ``None`` if it is rendered or in an archive; decodes nothing."""
    handles = unique_images([sample for samples in _sets(questions).values() for sample in samples])
    handles |= {handle.name: handle for _, _, images in questions.refused for handle in images}
    digests: dict[Path, str] = {}  # slices of a volume share a file
    with DigestCache() if len(handles) >= WORTH_KEEPING else nullcontext() as known:

        def digest(handle: ImageHandle) -> str | None:
            if isinstance(handle, ArrowImage):
                return handle.digest
            if not isinstance(handle, ImageFile | DicomImage | NiftiImage):
                return None
            if handle.path not in digests:
                digests[handle.path] = image_digest(handle, known) or "absent"
            return digests[handle.path]

        items = track(handles.items(), "Looking for changed images", len(handles))
        return {name: digest(handle) for name, handle in items}
