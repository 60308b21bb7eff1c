"""Published measurements of scaling, with our predictions of them. docs/explanation/scaling.md has the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hvdtrain.scaling.architectures import layers_of
from hvdtrain.scaling.network import NETWORKS, Cluster
from hvdtrain.scaling.overlap import Group, make_step, straggler
from hvdtrain.scaling.profile import Profile, hand_given

_HOROVOD = "Sergeev and Del Balso 2018, https://arxiv.org/abs/1802.05799"
_README = "https://github.com/horovod/horovod/blob/master/docs/benchmarks.rst"
_README_2017 = "the same page in Horovod 0.10, October 2017"


@dataclass(frozen=True)
class Published:
    """One published efficiency, and what is needed to predict it."""

    name: str
    profile: Profile
    cluster: Cluster
    efficiency: float
    """As published, 0-1."""
    tolerance: float
    """Largest allowed error of the prediction, 0-1."""
    source: str
    fusion_bytes: float = 0.0
    baseline: Cluster | None = None
    """The cluster that counts as 100 %; None: one rank without communication."""

    def predicted(self) -> float:
        """The predicted efficiency, 0-1."""
        efficiency = self._efficiency(self.cluster)
        return efficiency / self._efficiency(self.baseline) if self.baseline else efficiency

    def _efficiency(self, cluster: Cluster) -> float:
        profile = self.profile
        began = profile.step_s - profile.backward_s
        return make_step(
            [Group(g.size_bytes, began + g.release_s) for g in profile.groups],
            cluster.allreduce_s,
            compute_s=profile.step_s,
            backward_end_s=profile.step_s,
            ranks=cluster.ranks,
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


def _horovod(
    model: str, hosts: int, network: str, efficiency: float, tol: float, source: str
) -> Published:
    cluster = Cluster(hosts, 4, replace(NETWORKS[network], link_gbit=25.0))
    name = f"Horovod, {model}, {hosts}×4, 25 Gbit {network.upper()}"
    return Published(name, _MODELS[model](), cluster, efficiency, tol, source, 64 * 2**20)


def _goyal(latency_s: float = NETWORKS["tcp"].latency_s) -> Published:
    """ResNet-50 on 32×8 P100 over 50 Gbit Ethernet with Caffe2 and Gloo, relative to one server.

    90 epochs took 29 hours on one server of 8 GPUs; that gives its step time, with its straggler.
    The backward pass is 0.12 s of it. Each of the 161 tensors has its own allreduce, and there is
    no coordinator. Caffe2 runs several at once, the prediction one after the other.
    """
    server_step_s = 29 * 3600 / (90 * 1281167 / 256)
    tcp = replace(NETWORKS["tcp"], link_gbit=50.0, call_s=0.0, latency_s=latency_s)
    profile = hand_given(
        "resnet50",
        image_size=224,
        batch=32,
        step_s=server_step_s / straggler(8),
        group_bytes=0.0,
        backward_s=0.12,
    )
    tensors = [
        Group(4 * elements, group.release_s)
        for layer, group in zip(layers_of("resnet50", 224)[::-1], profile.groups, strict=True)
        for elements in reversed(layer.tensors)
    ]
    return Published(
        "Goyal et al., ResNet-50, 32×8, 50 Gbit TCP",
        replace(profile, groups=tuple(tensors)),
        Cluster(32, 8, tcp, "halving"),
        0.90,
        0.05,
        "Goyal et al. 2017, https://arxiv.org/abs/1706.02677, sections 4 and 5.5",
        baseline=Cluster(1, 8, tcp, "halving"),
    )


def published() -> list[Published]:
    """All published points; first those to which the figures of a network were fitted."""
    return [
        _horovod("Inception V3", 128, "rdma", 0.90, 0.03, _README),
        _horovod("ResNet-101", 128, "rdma", 0.90, 0.03, _README),
        _horovod("VGG-16", 128, "rdma", 0.68, 0.03, _README),
        _horovod("Inception V3", 32, "rdma", 0.90, 0.03, _README_2017),
        _horovod("ResNet-101", 32, "rdma", 0.90, 0.03, _README_2017),
        _horovod("VGG-16", 32, "rdma", 0.79, 0.10, _README_2017),
        _horovod("Inception V3", 32, "tcp", 0.88, 0.03, _HOROVOD),
        _horovod("ResNet-101", 32, "tcp", 0.88, 0.03, _HOROVOD),
        _goyal(),
    ]


def goyal_by_latency() -> dict[int, float]:
    """The predicted efficiency of Goyal's point at other latencies from host to host, in µs."""
    return {latency_us: _goyal(latency_us * 1e-6).predicted() for latency_us in (40, 50, 60)}


def rdma_over_tcp() -> float:
    """Predicted speed of VGG-16 on 32×4 GPUs over RDMA, divided by that over TCP."""
    rdma, tcp = (
        _horovod("VGG-16", 32, network, 0.0, 0.0, "").predicted() for network in ("rdma", "tcp")
    )
    return rdma / tcp


def traffic_per_step() -> tuple[float, float]:
    """Megabytes that one host sends in one step of DIUx's 4×8 run: predicted, and from its log.

    ResNet-50 with fp16 gradients, a flat ring of 32 GPUs. Each segment of 8949 bytes has 90 more on
    the wire (TCP with time stamps, IP, Ethernet with preamble and gap at MTU 9001).
    Source of the 112 MB: the log of the run of August 2018 on 4 p3.16xlarge (github.com/cybertronai/imagenet18).
    """
    size = 2.0 * sum(layer.parameters for layer in layers_of("resnet50", 224))
    cluster = Cluster(4, 8, replace(NETWORKS["tcp"], link_gbit=25.0))
    return cluster.host_bytes(size) * (1 + 90 / 8949) / 1e6, 112.0
