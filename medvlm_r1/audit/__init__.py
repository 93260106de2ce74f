"""What the questions give away before a model sees them.

===============  ====================================================================================
pictures.py      fingerprints of all pictures, and the pairs worth a closer look
kinds.py         two pictures laid over each other: copy, how altered, or neighbouring slice
leaks.py         questions of one set that show a picture of another
shortcuts.py     scores of rules that see no picture
findings.py      all of it in one value, its JSON form and its verdict in a line
whole.py         the audit itself
before_run.py    the audit at the start of a run, kept on disk
files.py         question files as they are, faults and all
===============  ====================================================================================
"""

from medvlm_r1.audit.before_run import BeforeRun
from medvlm_r1.audit.findings import Audit
from medvlm_r1.audit.whole import audit

__all__ = ["Audit", "BeforeRun", "audit"]
