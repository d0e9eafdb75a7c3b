"""Hooks: what a training does between its steps, one class a file.

``qat_hook`` keeps the freeze schedule, ``exact_resume_hook`` makes a resumed run end
where the uninterrupted one ends, ``report_hook`` writes a page at its end,
``surgery_hook`` changes a float model first. Imports ``wrappers`` and what is before
it.
"""

from .exact_resume_hook import ExactResumeHook
from .qat_hook import QATHook
from .report_hook import ReportHook
from .surgery_hook import SurgeryHook

__all__ = ['ExactResumeHook', 'QATHook', 'ReportHook', 'SurgeryHook']
