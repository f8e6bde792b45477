"""`manygate doctor`: versions, devices and the cluster, one finding per line, with the remedy for each problem."""

from cluster.diagnosis import run_checks


def run() -> int:
    """Prints the findings. Returns 0 if there is no problem and 2 otherwise."""
    findings = run_checks()
    for finding in findings:
        print(f"{'ok      ' if finding.ok else 'problem '} {finding.text}")
        if not finding.ok:
            print(f"         -> {finding.remedy}")
    return 0 if all(finding.ok for finding in findings) else 2
