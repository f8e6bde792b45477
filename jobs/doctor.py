"""What is installed, what the machine has, which cluster is there: each in a line, and for problems what to type."""

from cluster.diagnosis import run_checks


def run() -> int:
    """Prints the report; gives 0 when everything fits and 2 otherwise."""
    findings = run_checks()
    for finding in findings:
        print(f"{'ok      ' if finding.ok else 'problem '} {finding.text}")
        if not finding.ok:
            print(f"         -> {finding.remedy}")
    return 0 if all(finding.ok for finding in findings) else 2
