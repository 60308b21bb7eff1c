"""Installs the programs that some tests need and pip cannot install.

It installs Debian packages as root, which suits a container or a test machine. Without root or
apt-get it prints the names of the packages. Tests skip, with a message, if a program is missing.
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
"""Debian packages and the programs that tests need of each."""
NO_SERVICES = "#!/bin/sh\nexit 101\n"
"""Debian packages run this script before they start a service; 101 forbids it.

Source: invoke-rc.d(8), policy-rc.d
"""
POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """Packages with a program that is not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [
        package
        for package, programs in PACKAGES.items()
        if not all(shutil.which(program, path=path) for program in programs)
    ]


def install(packages: list[str]) -> None:
    """Runs apt-get so that no service is started. Raises CalledProcessError."""
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
    """Exit code 1 if something is still missing."""
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
        print(f"some tests are skipped until you install: {' '.join(needed)}", file=sys.stderr)
    return 1 if needed else 0


if __name__ == "__main__":
    sys.exit(main())
