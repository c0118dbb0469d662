import pytest

from torchgeo_explora.datasets.tables.problems import check_missing, tally, write_report

PROBLEMS = [('b.jpg', 'absent'), ('a, "x".jpg', 'absent'), ('c.jpg', 'no box')]


def test_report_lists_every_problem(tmp_path):
    path = tmp_path / 'sub' / 'report.csv'
    assert write_report(PROBLEMS, str(path)) == str(path)
    assert path.read_text().splitlines() == [
        'path,problem',
        'b.jpg,absent',
        '"a, ""x"".jpg",absent',
        'c.jpg,no box',
    ]
    assert write_report([], str(path)) is None
    assert not path.exists()


def test_report_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / 'file').write_text('')
    assert write_report(PROBLEMS, str(tmp_path / 'file' / 'report.csv')) is None


def test_tally():
    assert tally(PROBLEMS) == {'absent': 2, 'no box': 1}


def test_few_lost_samples_warn():
    with pytest.warns(UserWarning, match=r'X lists 300 .* 3 .*2 absent, 1 no box.*b'):
        check_missing(tally(PROBLEMS), 300, 0.01, 'X', 'b.jpg', 'report.csv')


def test_many_lost_samples_are_an_error():
    message = r'report\.csv\. More than max_missing=0\.01 .*larger \*max_missing\*'
    with pytest.raises(FileNotFoundError, match=message):
        check_missing(tally(PROBLEMS), 299, 0.01, 'X', 'b.jpg', 'report.csv')


def test_threshold_is_a_share():
    with pytest.raises(ValueError, match=r'\*max_missing\* must be in \[0, 1\], not 2'):
        check_missing({}, 10, 2, 'X')


def test_nothing_lost_says_nothing(recwarn):
    check_missing({}, 10, 0, 'X')
    assert not recwarn.list
