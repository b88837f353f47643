"""What a job names is opened as it was when the job was written, or not at all."""

import pytest

from intone.config import TrainJob
from intone.errors import Damaged, UserError
from intone.paths import read_json
from intone.train.opening import open_data


def test_another_tokenizer_than_the_jobs_is_refused(make_job):
    job = TrainJob.from_json(read_json(make_job(tokenizer_hash="0" * 64) / "config.json"))
    with pytest.raises(Damaged, match=f"the tokenizer in {job.tokenizer} is not the one this job was written for"):
        open_data(job)


def test_text_that_is_gone_is_named(make_job, tmp_path):
    job = TrainJob.from_json(read_json(make_job(val=str(tmp_path / "gone")) / "config.json"))
    with pytest.raises(UserError, match=str(tmp_path / "gone")):
        open_data(job)
