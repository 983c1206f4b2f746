import dataclasses

from tiny import job

from leptonai import Privacy

job = dataclasses.replace(job, privacy=Privacy(epsilon=2, delta=1e-4), name="private-tiny")
