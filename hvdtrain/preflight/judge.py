"""Find what is wrong between ranks or hosts: pure functions over their facts.

docs/reference/preflight.md lists every finding.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from hvdtrain import errors
from hvdtrain.comm.gpus import own_gpu
from hvdtrain.preflight import finding
from hvdtrain.preflight.collectives import check_collectives
from hvdtrain.preflight.facts import Facts, Link
from hvdtrain.preflight.finding import Finding, Names, differ, size_text, speed_text

CLOCK_S = 2.0
"""Clocks may differ by this much; otherwise the logs of hosts cannot be compared."""
DISK_BYTES = 16 * 2**20
"""Free space that is needed if the size of a checkpoint is not known."""
LINK_SHARE = 0.5
"""A link that carries less than this share of its card's speed gives a warning."""
STREAM_MBIT = 20_000.0
"""Speed that one TCP stream can reach on any card."""
LATENCY_S = 2e-3
"""Round trip time that gives a warning; ten times as long as in one machine room."""
READ_MB_PER_S = 20.0
"""A dataset read more slowly than this gives a warning."""
READ_FILES_PER_S = 500.0
"""No warning at this rate: small files give few MB/s from any disk."""
STRICT = ("hvdtrain", "torch", "horovod", "nvidia-dali-cuda130", "nvidia-dali-cuda120")
"""Packages whose versions must be equal; a difference in others gives a warning."""

Findings = Iterator[Finding]


def judge(facts: Sequence[Facts]) -> list[Finding]:
    """Compare the facts of all ranks (or hosts) and return all findings, faults first."""
    names = Names(facts)
    of_ranks = (_own, _placement, _gpus, _versions, _config, _data, _disk)
    between = (_network, check_collectives, _links, _clocks, _storage)
    checks = (*of_ranks, *between)
    return finding.faults_first(finding for check in checks for finding in check(facts, names))


def _own(facts: Sequence[Facts], names: Names) -> Findings:
    for one in facts:
        for text in one.faults:
            yield Finding("host", names.host(one), text, "", errors.CommError)


def _placement(facts: Sequence[Facts], names: Names) -> Findings:
    for one in facts:
        for variable, started in one.launcher.items():
            if started != one.size:
                yield Finding(
                    "size",
                    names.rank(one),
                    f"the launcher started {started} ranks ({variable}), this one sees {one.size}, "
                    "so each would train by itself",
                    "start with mpirun, torchrun or hvdtrain launch; hvdtrain doctor shows what "
                    "Horovod was built with",
                    errors.CommError,
                )
                return
    seen: dict[tuple[str, int], Facts] = {}
    for one in facts:
        if one.rank is None:
            continue
        other = seen.setdefault((one.machine, one.local_rank), one)
        if other is not one:
            yield Finding(
                "local rank",
                names.rank(one),
                f"has local rank {one.local_rank}, the same as rank {other.rank} on this host",
                "name each host once, as NAME:SLOTS",
                errors.CommError,
            )
            return


def _gpus(facts: Sequence[Facts], names: Names) -> Findings:
    ranks = [one for one in facts if one.rank is not None]
    owners: dict[str, Facts] = {}
    for one in ranks:
        if one.visible_gpus and own_gpu(one.local_rank, one.visible_gpus) is None:
            yield Finding(
                "gpu",
                names.rank(one),
                f"has local rank {one.local_rank}, but sees only {one.visible_gpus} of the GPUs",
                "start one rank per GPU, and let every rank see all GPUs of its host or its own alone",
                errors.ConfigError,
            )
        elif one.gpu is not None and (other := owners.setdefault(one.gpu, one)) is not one:
            yield Finding(
                "gpu",
                names.rank(one),
                f"has the same GPU as rank {other.rank} ({one.gpu})",
                "start one rank per GPU; CUDA_VISIBLE_DEVICES must name each once, or another one for each rank",
                errors.ConfigError,
            )
    without = [one for one in ranks if not one.visible_gpus]
    if without and len(without) < len(ranks):
        yield Finding(
            "gpu",
            names.hosts(without),
            "no GPU is visible, but other hosts have some",
            "run nvidia-smi there, or leave the host out",
            errors.ConfigError,
        )
    if kinds := differ(((one, one.gpu_name) for one in facts), names):
        yield Finding(
            "gpu model", "GPUs", kinds, "the slowest sets the pace: use equal GPUs if you can"
        )


def _versions(facts: Sequence[Facts], names: Names) -> Findings:
    for package in dict.fromkeys(name for one in facts for name in one.versions):
        text = differ(((one, one.versions.get(package, "none")) for one in facts), names)
        if text is not None:
            kind = errors.CommError if package in STRICT else None
            yield Finding("version", package, text, finding.SAME_CHECKOUT, kind)


def _config(facts: Sequence[Facts], names: Names) -> Findings:
    if text := differ(((one, one.config) for one in facts), names):
        fix = "copy the same file to all hosts, and the files that it extends"
        yield Finding("config", "the config's hash", text, fix, errors.ConfigError)


def _data(facts: Sequence[Facts], names: Names) -> Findings:
    several = len({one.machine for one in facts}) > 1
    for key in dict.fromkeys(data.key for one in facts for data in one.data):
        fix = "is it mounted there? The images must be at the same path on all hosts"
        if not several:
            fix = f"give the path of the images with {key}=DIR (docs/how-to/data.md)"
        seen = [(one, data) for one in facts for data in one.data if data.key == key]
        missing: dict[str, list[Facts]] = {}
        for one, data in seen:
            if data.error is not None:
                missing.setdefault(f"{key}: {data.path}: {data.error}", []).append(one)
        for text, where in missing.items():
            yield Finding(
                "data",
                names.hosts(where),
                text,
                fix,
                errors.DataError,
            )
        listed = [
            (one, f"{data.count:,} names ({data.manifest})") for one, data in seen if data.manifest
        ]
        if different := differ(listed, names):
            yield Finding(
                "manifest",
                key,
                f"the lists differ: {different}",
                "copy the same dataset to all hosts",
                errors.DataError,
            )


def _disk(facts: Sequence[Facts], names: Names) -> Findings:
    for one in facts:
        disk = one.disk
        if disk is None:
            continue
        where, space = f"{names.host(one)}: {disk.path}", "choose another disk with output=DIR"
        need = disk.need_bytes or DISK_BYTES
        if disk.error is not None:
            yield Finding("disk", where, disk.error, space, errors.ResourceError)
        elif disk.free_bytes < need:
            what = "one checkpoint" if disk.need_bytes else "a run"
            text = f"{size_text(disk.free_bytes)} free, {what} needs {size_text(need)}"
            yield Finding("disk", where, text, f"free some space, or {space}", errors.ResourceError)
        elif disk.need_bytes and disk.free_bytes < need * (disk.keep + 1):
            text = (
                f"{size_text(disk.free_bytes)} free, {disk.keep} checkpoints and the one being "
                f"written need {size_text(need * (disk.keep + 1))}"
            )
            yield Finding("space", where, text, f"free some, lower checkpoint.keep, or {space}")


def _network(facts: Sequence[Facts], names: Names) -> Findings:
    mtus = [(one, f"{one.nic.mtu} ({one.nic.name})") for one in facts if one.nic is not None]
    if len({one.nic.mtu for one in facts if one.nic is not None}) > 1 and (
        text := differ(mtus, names)
    ):
        yield Finding(
            "mtu",
            "MTU of the network interfaces",
            text,
            "large packets may be lost: set the same MTU with ip link set dev NAME mtu N",
        )
    pausing = [one for one in facts if one.congestion == "bbr" and one.nic is not None]
    if pausing and len({one.machine for one in facts}) > 1:
        yield Finding(
            "congestion",
            names.hosts(pausing),
            "TCP's congestion control is bbr: on a busy link it nearly stops for 0.2 s every 10 s, "
            "and all ranks wait",
            "sysctl -w net.ipv4.tcp_congestion_control=cubic",
        )


def _links(facts: Sequence[Facts], names: Names) -> Findings:
    by_rank = {one.rank: one for one in facts}
    for one in facts:
        if one.link is None or one.nic is None:
            continue
        to = by_rank[one.link.to]
        where = f"{names.rank(one)} ({one.nic.name}) → {names.rank(to)}"
        if one.link.error is not None:
            yield Finding(
                "link",
                where,
                f"{one.link.address}: {one.link.error}",
                "open all TCP ports between the hosts, or name the right network with "
                "comm.interface",
                errors.CommError,
            )
            continue
        expected = expected_mbit(one, to)
        if expected and one.link.mbit < LINK_SHARE * min(expected, STREAM_MBIT):
            yield Finding(
                "slow link",
                where,
                f"{speed_text(one.link.mbit)} of {speed_text(expected)}",
                "do others use it, or is it the wrong card (comm.interface)? See ethtool and iperf3",
            )
        if one.link.latency_s > LATENCY_S:
            yield Finding(
                "latency",
                where,
                f"a round trip takes {one.link.latency_s * 1e3:.1f} ms",
                "do others use it, or is it the wrong card (comm.interface)?",
            )


def expected_mbit(one: Facts, to: Facts) -> float:
    """Speed that the link between the hosts of two ranks should reach, Mbit/s; 0: unknown."""
    if one.link_gbit is not None:
        return one.link_gbit * 1000
    speeds = [rank.nic.speed_mbit for rank in (one, to) if rank.nic is not None]
    return min(speeds, default=0)


def _clocks(facts: Sequence[Facts], names: Names) -> Findings:
    middle = statistics.median([one.clock for one in facts])
    off = [one for one in facts if abs(one.clock - middle) > CLOCK_S]
    if off and len({one.machine for one in facts}) > 1:
        apart = max(abs(one.clock - middle) for one in off)
        yield Finding(
            "clock", names.hosts(off), f"the clock is {apart:.1f} s off", "start chrony or ntpd"
        )


def _storage(facts: Sequence[Facts], names: Names) -> Findings:
    for one in facts:
        reads = one.reads
        if reads and reads.mb_per_s < READ_MB_PER_S and reads.files_per_s < READ_FILES_PER_S:
            yield Finding(
                "storage",
                names.host(one),
                f"the dataset is read at {reads.mb_per_s:.1f} MB/s, {reads.files_per_s:.0f} files/s",
                "pack it into few large files (hvdtrain data pack), or copy it to a local disk (hvdtrain data stage)",
            )


def measured(facts: Sequence[Facts]) -> str:
    """One line with what was measured, for the log of the run."""
    names, parts = Names(facts), []
    hosts = len({one.machine for one in facts})
    parts.append(f"{len(facts)} ranks on {hosts} host{'s' if hosts > 1 else ''}")
    links = [(one, one.link) for one in facts if one.link is not None and not one.link.error]
    if links:
        one, slowest = min(links, key=lambda pair: pair[1].mbit)
        parts.append(_link_text(names.host(one), slowest, one, facts, names))
    reads = [one.reads.mb_per_s for one in facts if one.reads is not None]
    if reads:
        parts.append(f"dataset read at {min(reads):,.0f} MB/s")
    if hosts > 1:
        clocks = [one.clock for one in facts]
        parts.append(f"clocks within {max(clocks) - min(clocks):.2f} s")
    return ", ".join(parts)


def _link_text(host: str, link: Link, one: Facts, facts: Sequence[Facts], names: Names) -> str:
    to = next(other for other in facts if other.rank == link.to)
    card = one.nic.name if one.nic is not None else "?"
    return (
        f"slowest link {host} → {names.host(to)} {speed_text(link.mbit)}, "
        f"{link.latency_s * 1e3:.2f} ms ({card})"
    )
