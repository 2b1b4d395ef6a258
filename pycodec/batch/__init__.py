"""Whole folders of pictures, on one machine or many: ``pycodec batch``.

>>> from pycodec.batch import Job, run_batch
>>> report = run_batch(Job("encode", "photos", "s3://bucket/photos"))  # doctest: +SKIP
>>> report.done, report.skipped, report.failed  # doctest: +SKIP
(1200, 0, {})
"""

from pycodec.batch.run import Report, run_batch
from pycodec.batch.work import Job

__all__ = ["Job", "Report", "run_batch"]
