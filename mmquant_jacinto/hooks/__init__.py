from .exact_resume_hook import ExactResumeHook
from .qat_hook import QATHook

__all__ = ['ExactResumeHook', 'QATHook']
