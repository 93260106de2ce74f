"""Audit of the questions: leaks between sets, repeated questions, shortcuts without the image.

=================  ==================================================================================
run_audit.py       audit a set of questions: run all checks below
fingerprints.py    digests and thumbnails of all images; candidate pairs of similar images
compare_pair.py    classify two images: copy (and how it was altered), neighbouring slice, different
leaks.py           questions of one set that show an image of another
shortcuts.py       accuracy of rules that see no image
result.py          the audit result, its JSON form and its one-line verdict
pre_run.py         the audit at the start of a run, cached on disk
question_files.py  read question files with all their faults
=================  ==================================================================================
"""

from medvlm_r1.audit.pre_run import PreRunAudit
from medvlm_r1.audit.result import Audit
from medvlm_r1.audit.run_audit import audit

__all__ = ["Audit", "PreRunAudit", "audit"]
