"""Installs the programs that some tests need and Python's packages do not bring; tests that miss
one are skipped, and say so.

Only as root, and where there is apt-get, so in a container or a machine for tests. Elsewhere it
prints the names of the packages.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "chromium": ("chromium",),
    "prometheus": ("prometheus", "promtool"),
    "iproute2": ("ip", "tc"),
    "openssh-server": ("sshd",),
    "openssh-client": ("ssh",),
    "iperf3": ("iperf3",),
    "slurmctld": ("slurmctld",),
    "slurmd": ("slurmd",),
    "slurm-client": ("sbatch",),
    "munge": ("munged",),
}
"""Debian's, with the programs of each that are needed."""
NO_SERVICES = "#!/bin/sh\nexit 101\n"
"""What a package asks before it starts its service: no. Source: invoke-rc.d(8), policy-rc.d"""
POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """Packages of which a program is not there."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [
        package
        for package, programs in PACKAGES.items()
        if not all(shutil.which(program, path=path) for program in programs)
    ]


def install(packages: list[str]) -> None:
    """By apt-get, without starting their services. Raises CalledProcessError."""
    own_policy = not POLICY.exists()
    if own_policy:
        POLICY.write_text(NO_SERVICES)
        POLICY.chmod(0o755)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    get = ["apt-get", "-q", "-o", "Acquire::Retries=3"]
    try:
        subprocess.run([*get, "update"], check=True, env=env, stdout=subprocess.DEVNULL)
        command = [*get, "install", "--yes", "--no-install-recommends", *packages]
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    finally:
        if own_policy:
            POLICY.unlink()


def main() -> int:
    """1 if something is still missing."""
    needed = missing()
    if needed and os.geteuid() == 0 and shutil.which("apt-get"):
        try:
            install(needed)
        except subprocess.CalledProcessError as error:
            print(
                f"error: {' '.join(error.cmd[:5])}: exit code {error.returncode}", file=sys.stderr
            )
    needed = missing()
    if needed:
        print(f"tests that need them are skipped: install {' '.join(needed)}", file=sys.stderr)
    return 1 if needed else 0


if __name__ == "__main__":
    sys.exit(main())
