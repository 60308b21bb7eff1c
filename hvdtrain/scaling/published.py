"""Published efficiencies and step times, with our predictions of them. docs/explanation/scaling.md has the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hvdtrain.config.schema import GROUP_MB
from hvdtrain.scaling.architectures import layers_of
from hvdtrain.scaling.ends import End, Ends, both, low_high, same
from hvdtrain.scaling.network import NETWORKS, Cluster
from hvdtrain.scaling.overlap import SIGMA, Group, make_step, straggler
from hvdtrain.scaling.predict import update
from hvdtrain.scaling.profile import Calibration, Profile, hand_given
from hvdtrain.scaling.wire import Wire

_HOROVOD = "Sergeev and Del Balso 2018, https://arxiv.org/abs/1802.05799"
_README = "https://github.com/horovod/horovod/blob/master/docs/benchmarks.rst"
_README_2017 = "the same page in Horovod 0.10, October 2017"


@dataclass(frozen=True)
class Published:
    """One published efficiency, and what is needed to predict it."""

    name: str
    profile: Ends[Profile]
    cluster: Cluster
    efficiency: float
    """As published, 0-1."""
    source: str
    fusion_bytes: float = 0.0
    baseline: Cluster | None = None
    """The cluster that counts as 100 %; None: one rank without communication."""

    def predicted(self) -> Ends[float]:
        """The predicted efficiency, 0-1."""
        return both(self._relative)

    def _relative(self, end: End) -> float:
        efficiency = self._efficiency(self.cluster, end)
        return efficiency / self._efficiency(self.baseline, end) if self.baseline else efficiency

    def _efficiency(self, cluster: Cluster, end: End) -> float:
        profile = self.profile.at(end)
        began = profile.step_s - profile.backward_s
        return make_step(
            [Group(g.size_bytes, began + g.release_s) for g in profile.groups],
            cluster.at(end).allreduce_s,
            compute_s=profile.step_s,
            backward_end_s=profile.step_s,
            ranks=cluster.ranks,
            sigma=SIGMA.at(end),
            fusion_bytes=self.fusion_bytes,
        ).efficiency


def _p100(model: str, image_size: int, images_per_s: float) -> Profile:
    """One P100 at batch 64, with one group of fp32 gradients per layer."""
    return hand_given(
        model, image_size=image_size, batch=64, step_s=64 / images_per_s, group_bytes=0.0
    )


# Speeds of one GPU: tensorflow.org's benchmarks of May 2017 (DGX-1, synthetic data, batch 64) for
# Inception V3 and VGG-16; ResNet-101: 1656.82 images/s on 16 GPUs, the example of Horovod's page.
_MODELS: dict[str, Callable[[], Profile]] = {
    "Inception V3": lambda: _p100("inception_v3", 299, 142.0),
    "ResNet-101": lambda: _p100("resnet101", 224, 1656.82 / 16),
    "VGG-16": lambda: _p100("vgg16", 224, 154.0),
}


def _horovod(model: str, hosts: int, network: str, efficiency: float, source: str) -> Published:
    cluster = Cluster(hosts, 4, replace(NETWORKS[network], link_gbit=25.0))
    name = f"Horovod, {model}, {hosts}×4, 25 Gbit {network.upper()}"
    return Published(name, same(_MODELS[model]()), cluster, efficiency, source, 64 * 2**20)


def _goyal(latency_s: float = NETWORKS["tcp"].latency_s) -> Published:
    """ResNet-50 on 32×8 P100 over 50 Gbit Ethernet with Caffe2 and Gloo, relative to one server.

    90 epochs took 29 hours on one server of 8 GPUs; that gives its step time, with its straggler.
    The backward pass is 0.12 s of it. Each of the 161 tensors has its own allreduce, and there is
    no coordinator. Caffe2 runs several at once, the prediction one after the other.
    """
    server_step_s = 29 * 3600 / (90 * 1281167 / 256)
    tcp = replace(NETWORKS["tcp"], link_gbit=50.0, call_s=0.0, latency_s=latency_s)

    def profile(end: End) -> Profile:
        given = hand_given(
            "resnet50",
            image_size=224,
            batch=32,
            step_s=server_step_s / straggler(8, SIGMA.at(end)),
            group_bytes=0.0,
            backward_s=0.12,
        )
        return replace(given, groups=_by_tensor(given))

    return Published(
        "Goyal et al., ResNet-50, 32×8, 50 Gbit TCP",
        both(profile),
        Cluster(32, 8, tcp, "halving"),
        0.90,
        "Goyal et al. 2017, https://arxiv.org/abs/1706.02677, sections 4 and 5.5",
        baseline=Cluster(1, 8, tcp, "halving"),
    )


def _by_tensor(profile: Profile) -> tuple[Group, ...]:
    """Each tensor of ResNet-50 by itself, released with its layer."""
    return tuple(
        Group(4 * elements, group.release_s)
        for layer, group in zip(layers_of("resnet50", 224)[::-1], profile.groups, strict=True)
        for elements in reversed(layer.tensors)
    )


def published() -> list[Published]:
    """All published efficiencies; first those to which figures of a network were fitted."""
    return [
        _horovod("Inception V3", 128, "rdma", 0.90, _README),
        _horovod("ResNet-101", 128, "rdma", 0.90, _README),
        _horovod("VGG-16", 128, "rdma", 0.68, _README),
        _horovod("Inception V3", 32, "rdma", 0.90, _README_2017),
        _horovod("ResNet-101", 32, "rdma", 0.90, _README_2017),
        _horovod("VGG-16", 32, "rdma", 0.79, _README_2017),
        _horovod("Inception V3", 32, "tcp", 0.88, _HOROVOD),
        _horovod("ResNet-101", 32, "tcp", 0.88, _HOROVOD),
        _goyal(),
    ]


def goyal_by_latency() -> dict[int, Ends[float]]:
    """The predicted efficiency of Goyal's point at other latencies from host to host, in µs."""
    return {latency_us: _goyal(latency_us * 1e-6).predicted() for latency_us in (40, 50, 60)}


def rdma_over_tcp() -> Ends[float]:
    """Predicted speed of VGG-16 on 32×4 GPUs over RDMA, divided by that over TCP."""
    rdma, tcp = (_horovod("VGG-16", 32, net, 0.0, "").predicted() for net in ("rdma", "tcp"))
    return both(lambda end: rdma.at(end) / tcp.at(end))


@dataclass(frozen=True)
class Box:
    """ResNet-50 at 224 px on one and on eight GPUs of one machine."""

    name: str
    batch: int
    """Images per GPU."""
    one: float
    """Images/s of one GPU."""
    eight: float
    wire: float = 1.0
    """Bytes sent ÷ bytes in fp32."""

    @property
    def efficiency(self) -> float:
        """As published, 0-1."""
        return self.eight / 8 / self.one

    def predicted(self) -> Ends[float]:
        """The predicted efficiency, 0-1."""
        profile = hand_given(
            "resnet50",
            image_size=224,
            batch=self.batch,
            step_s=self.batch / self.one,
            group_bytes=GROUP_MB * 2**20,
        )
        cluster = Cluster(1, 8, replace(NETWORKS["tcp"], link_gbit=1.0))  # no link is used
        return SIGMA.map(lambda s: update(profile, cluster, Wire(self.wire), s).efficiency)


# Source: NVIDIA/DeepLearningExamples on GitHub: PyTorch/Classification/RN50v1.5/README.md (2018) and
# PyTorch/Classification/ConvNets/resnet50v1.5/README.md with configs.yml (2021), MxNet/Classification/RN50v1.5/
# README.md (2020).
BOXES = [
    Box("PyTorch 18.09, 8 V100, fp32", 128, 363.1, 2857.9),
    Box("PyTorch 18.09, 8 V100, fp16", 256, 747.3, 5815.8, 0.5),
    Box("PyTorch 21.03, 8 V100, fp32", 112, 367, 2855),
    Box("PyTorch 21.03, 8 V100, AMP", 256, 1200, 8322),
    Box("PyTorch 21.03, 8 A100, TF32", 256, 938, 7248),
    Box("PyTorch 21.03, 8 A100, AMP", 256, 2470, 16621),
    Box("MXNet 20.12, 8 V100, fp32", 96, 384, 3005),
    Box("MXNet 20.12, 8 V100, AMP", 192, 1376, 10723, 0.5),
    Box("MXNet 20.12, 8 A100, TF32", 256, 1022, 8001),
    Box("MXNet 20.12, 8 A100, AMP", 256, 2180, 16925, 0.5),
]
_V100 = BOXES[1]
"""Of the same month and the same GPU as DIUx's log."""


@dataclass(frozen=True)
class Logged:
    """Steps of DIUx's log: ResNet-50, fp16, 8 hosts with 8 V100 each (p3.16xlarge), 25 Gbit/s."""

    image_size: int
    batch: int
    """Images per GPU."""
    median_s: float
    """Of the steps that the log prints, every fifth; the pauses for printing are in the next ones."""


# Source: the log of 5 September 2018, dawn/logs/single_machine/verbose.log in cybertronai/imagenet18_old on GitHub
# (of eight machines, whatever its folder says: 157 steps an epoch of 128 images per GPU).
DIUX = [
    Logged(128, 128, 0.133),
    Logged(128, 256, 0.181),
    Logged(224, 128, 0.224),
    Logged(224, 224, 0.3465),
    Logged(288, 128, 0.351),
]
DIUX_SENT_MB = (100.5, 103.1)
"""By one host in a step, least and most of the five: bandwidth times step, medians. The bandwidth is of the time
between two prints without the pause of the print, so it does not go with the running mean of the steps."""
_FITTED = (DIUX[1], DIUX[3])
"""The larger batch of each image size that has two."""


def _diux_cluster(hosts: int = 8) -> Cluster:
    return Cluster(hosts, 8, replace(NETWORKS["tcp"], link_gbit=25.0))


def _diux_step(profile: Profile, end: End, hosts: int = 8) -> float:
    return update(profile, _diux_cluster(hosts).at(end), Wire(0.5), SIGMA.at(end)).seconds


def _given(image_size: int, batch: int, step_s: float) -> Profile:
    group_bytes = GROUP_MB * 2**20
    return hand_given(
        "resnet50", image_size=image_size, batch=batch, step_s=step_s, group_bytes=group_bytes
    )


def _worker(logged: Logged, end: End) -> Profile:
    """The worker whose predicted step at this end is the logged one: by bisection of its own step."""
    low, high = 0.0, logged.median_s
    for _ in range(40):
        middle = (low + high) / 2
        step_s = _diux_step(_given(logged.image_size, logged.batch, middle), end)
        low, high = (middle, high) if step_s < logged.median_s else (low, middle)
    return _given(logged.image_size, logged.batch, high)


def diux() -> list[tuple[Logged, bool, Ends[float]]]:
    """Each logged step, whether the computing of a worker was fitted to it, and the predicted seconds.

    Fitted are two numbers, the times that a worker computes at the larger batch of 128 and of 224 px, at each end
    by itself. The other three steps are predictions, made as from a calibration.json with these two.
    """
    speed = both(lambda end: Calibration([_worker(each, end) for each in _FITTED], ""))
    return [(each, each in _FITTED, _predicted(each, speed)) for each in DIUX]


def diux_from_one_gpu() -> list[tuple[Logged, Ends[float]]]:
    """The same with nothing from the log: a worker as fast as NVIDIA's single V100 of that month."""
    one = Calibration([_given(224, _V100.batch, _V100.batch / _V100.one)], "")
    return [(each, _predicted(each, same(one))) for each in DIUX]


def diux_larger_from_smaller() -> list[tuple[Logged, Ends[float]]]:
    """The fitted steps themselves, each predicted from a worker fitted to the smaller batch of its image size."""

    def from_(smaller: Logged) -> Ends[Calibration]:
        return both(lambda end: Calibration([_worker(smaller, end)], ""))

    return [(large, _predicted(large, from_(DIUX[2 * i]))) for i, large in enumerate(_FITTED)]


def diux_on_four_hosts() -> Ends[float]:
    """Predicted seconds of 224 images at 224 px on 4 hosts; the README of the log prints 318 and 336 ms."""
    return both(lambda end: _diux_step(_worker(DIUX[3], end), end, hosts=4))


def _predicted(logged: Logged, speed: Ends[Calibration]) -> Ends[float]:
    def at(end: End) -> float:
        profile = speed.at(end).profile(logged.image_size, logged.batch, 1, end)
        return _diux_step(profile, end)

    return both(at)


def half_width(ends: Ends[float]) -> float:
    """Half the range over its middle, 0-1: x for a range of ± x."""
    low, high = low_high(ends)
    return (high - low) / (high + low)


def traffic_per_step() -> float:
    """Megabytes that one host sends in one step of DIUx's 8×8 run, as predicted.

    A flat ring of 64 GPUs. Each segment of 8949 bytes has 66 more where the operating system counts (TCP with time
    stamps, IP, Ethernet, at MTU 9001).
    """
    size = 2.0 * sum(layer.parameters for layer in layers_of("resnet50", 224))
    return _diux_cluster().host_bytes(size) * (1 + 66 / 8949) / 1e6
