"""The page of all studies, as HTML and Markdown."""

from dataclasses import replace

import pytest

from alloralib.errors import RecordError
from paper.page import Entry, html_page, markdown_page
from paper.run import run_study

from .test_run import Counting


def test_pages(tmp_path) -> None:
    study = Counting().study
    record = run_study(study, output_dir=tmp_path)
    entries = [Entry(study, record), Entry(replace(study, name="later"), None)]
    page = html_page(entries, tmp_path)
    assert "data:image/png;base64," in page
    assert "src='http" not in page
    assert "smaller &lt;than&gt;" in page
    assert "not run" in page
    text = markdown_page(entries, tmp_path, tmp_path)
    assert "the mean is large \\| really" in text
    assert "](counting/counting.png)" in text
    assert "## Not run\n\n- later: later" in text
    assert "1 claims of the paper: 1 confirmed" in text


def test_a_record_with_other_claims_is_refused(tmp_path) -> None:
    study = Counting().study
    record = run_study(study, output_dir=tmp_path)
    other = replace(study, claims=[replace(study.claims[0], name="another")])
    with pytest.raises(RecordError, match="other claims than the study"):
        markdown_page([Entry(other, record)], tmp_path, tmp_path)
