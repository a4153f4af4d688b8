"""The one loop, and what it stands on.

- ``engine`` (stages), ``step``, ``batches``, ``context`` (what a step may ask), ``guard`` (what is not finite), ``inner``
  (the loop in memory), ``timing``, ``distributed``, ``interrupt``, ``turns`` (who makes what runs share).
- ``bench`` and ``unaided``: the participants of a run, and networks trained on labels alone.
- ``logs``, ``trackers``, ``progress``: what is kept and shown of a run.
"""
