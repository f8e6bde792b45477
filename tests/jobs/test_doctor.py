"""Output and exit code of `manygate doctor`."""

import pytest

from cluster.diagnosis import Finding
from jobs import cli, doctor

FITS, MISFIT = Finding("torch 2.13.0"), Finding("ray: expected 2.60.0, found 2.50.0", "pip install ray==2.60.0")


@pytest.mark.parametrize(("findings", "code"), [([FITS], 0), ([FITS, MISFIT], 2)])
def test_exit_code_shows_whether_there_is_a_problem(
    findings: list[Finding], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda: findings)
    assert cli.main(["doctor"]) == code


def test_a_problem_is_followed_by_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda: [FITS, MISFIT])
    doctor.run()
    assert capsys.readouterr().out.splitlines() == [
        "ok       torch 2.13.0",
        "problem  ray: expected 2.60.0, found 2.50.0",
        "         -> pip install ray==2.60.0",
    ]
