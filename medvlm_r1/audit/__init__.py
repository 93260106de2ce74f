"""Audit of the questions: leaks between sets, repeated questions, shortcuts without the image.

``run_audit.py`` runs all checks, ``pre_run.py`` runs and caches them at the start of a run.
"""

from medvlm_r1.audit.pre_run import PreRunAudit
from medvlm_r1.audit.result import Audit
from medvlm_r1.audit.run_audit import audit

__all__ = ["Audit", "PreRunAudit", "audit"]
