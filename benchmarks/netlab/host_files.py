"""Files of a lab's hosts: start script, settings of sshd and ssh, keys and names."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.netlab.namespaces import SYSTEM_PATH

# Runs as process 1 of a host, in the host's own namespaces. `$1`: the lab's folder, `$2`: the
# host's name, `$3`: sshd. /sys must be mounted again to show the host's own interfaces.
_INIT = """
set -e
hostname "$2"
ip link set lo up
mount -t sysfs sysfs /sys
# Most machines use cubic. Every kernel allows reno here; on such a link it behaves like cubic.
for each in cubic reno; do sysctl -q net.ipv4.tcp_congestion_control=$each 2>/dev/null && break; done || true
mount -t tmpfs tmpfs /dev/shm
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/ssh_config" /etc/ssh/ssh_config
exec "$3" -D -f "$1/$2/sshd_config" -E "$1/$2/sshd.log"
"""

_SSHD = """ListenAddress 0.0.0.0
HostKey {folder}/host_key
AuthorizedKeysFile {home}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxStartups 100
SetEnv TMPDIR={home}/tmp
"""

_SSH = """Host *
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    GlobalKnownHostsFile {folder}/known_hosts
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 5
    LogLevel ERROR
"""


def host_command(folder: Path, name: str) -> list[str]:
    """Command of process 1 of a host."""
    sshd = shutil.which("sshd", path=SYSTEM_PATH)
    return ["sh", "-c", _INIT, "netlab", str(folder), name, str(sshd)]


def write_files(folder: Path, addresses: Mapping[str, str]) -> None:
    """Write keys, names and settings of all hosts; `addresses` are by host name."""
    for key in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", folder.name, "-f", key]
        subprocess.run(command, check=True, cwd=folder)
    host_key = (folder / "host_key.pub").read_text()
    user_key = (folder / "user_key.pub").read_text()
    names = [f"{address} {name}" for name, address in addresses.items()]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
    (folder / "known_hosts").write_text(f"* {host_key}")
    (folder / "ssh_config").write_text(_SSH.format(folder=folder))
    for name in addresses:
        home = folder / name
        (home / "tmp").mkdir(parents=True)
        (home / "authorized_keys").write_text(user_key)
        (home / "sshd_config").write_text(_SSHD.format(folder=folder, home=home))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd does not start without it
