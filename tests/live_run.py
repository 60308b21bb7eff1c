"""A run that is only told of: reports of as many ranks as wished, for the live page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.telemetry.live import Live
from hvdtrain.telemetry.lost_time import lost_time, sentence
from hvdtrain.telemetry.meter import Interval
from hvdtrain.telemetry.prometheus import Exporter
from tests.launch import free_port

EPOCHS, PER_EPOCH, STEPS = 16, 25, 10
"""Epochs of the run, reports of each, and steps of a report."""
ALONE_S = 0.2


class ToldRun:
    """An exporter of rank 0 with its live page, and the reports that it is given."""

    def __init__(self, ranks: int, **metrics: Any) -> None:
        self.hosts = [f"node{rank // 8:02}" for rank in range(ranks)]
        settings = Metrics(port=free_port(), **metrics)
        self.cfg = Config(name="told", phases=[Phase(epochs=EPOCHS)], metrics=settings)
        self.live = Live("imagenet-20261121-054741", "resnet50", self.hosts)
        self.exporter = Exporter(self.cfg, Solo(), self.live)
        self.address = f"http://127.0.0.1:{self.exporter.endpoint.port}/"
        self._rng = np.random.default_rng(0)
        self.reports = 0

    def advance(self, reports: int = 1) -> None:
        """So many more intervals; every fourth epoch one rank is slow."""
        for _ in range(reports):
            self.reports += 1
            epoch = self.reports / PER_EPOCH
            self.exporter.write("train", self._train(epoch) | self._times(epoch))
            if self.reports % PER_EPOCH == 0:
                top1 = 0.76 * (1 - math.exp(-epoch / 4))
                values = {"loss": 2.6 - 2.2 * top1, "top1": top1, "top5": top1**0.4}
                self.exporter.write("eval", {"epoch": epoch, "images": 50000, **values})

    def _train(self, epoch: float) -> dict[str, Any]:
        size, batch = (128, 1024) if epoch <= 6 else (224, 512) if epoch <= 13 else (288, 256)
        done, noise = epoch / EPOCHS, self._rng.normal()
        return {
            "step": self.reports * STEPS,
            "epoch": epoch,
            "epochs": EPOCHS,
            "progress": done,
            "eta_s": (EPOCHS - epoch) * PER_EPOCH * STEPS * ALONE_S,
            "phase": 0 if epoch <= 6 else 1 if epoch <= 13 else 2,
            "image_size": size,
            "batch_per_worker": batch // 8,
            "global_batch_size": batch,
            "total_samples": self.reports * STEPS * batch,
            "lr": 2.0 * min(epoch / 2, (EPOCHS - epoch) / 14),
            "momentum": 0.9,
            "loss_scale": None,
            "loss": 1.2 + 5.7 * math.exp(-epoch / 3) + 0.05 * noise,
            "top1": 0.72 * (1 - math.exp(-epoch / 5)) + 0.005 * noise,
            "top5": 0.9 * (1 - math.exp(-epoch / 3)),
            "gradient_noise_scale": 800 + 300 * epoch + 60 * noise,
        }

    def _times(self, epoch: float) -> dict[str, Any]:
        ranks = len(self.hosts)
        shape = (ranks, STEPS)
        data_s = np.maximum(0, self._rng.normal(0.004, 0.004, shape))
        ready = data_s + ALONE_S + self._rng.gamma(1.0, 0.004, shape)
        if int(epoch) % 4 == 3:
            ready[ranks - 1] += 0.06
        wait_s = ready.max(axis=0) + 0.012 - ready
        values = {
            "samples": 512.0 * STEPS,
            "seconds": float((ready + wait_s)[0].sum()),
            "step_seconds": float((ready + wait_s).mean()),
            "data_wait_ratio": float(data_s.mean() / (ready + wait_s).mean()),
            "comm_wait_ratio": float(wait_s.mean() / (ready + wait_s).mean()),
        }
        values["images_per_second"] = values["samples"] / values["seconds"]
        nothing = np.zeros(ranks)
        interval = Interval(values, False, [], ready + wait_s, data_s, wait_s, nothing, nothing)
        lost = None
        if ranks > 1:
            lost = lost_time(interval.step_s, data_s, wait_s, ALONE_S * STEPS)
            values |= {
                "efficiency": lost.ideal_s / lost.seconds,
                "efficiency_ceiling": 0.97,
                **{f"lost_{cause}_ratio": ratio for cause, ratio in lost.ratios.items()},
                "cause": lost.cause,
                "straggler": lost.straggler if lost.cause == "straggling" else None,
                "explanation": sentence(lost, self.hosts, "the link allows an efficiency of 97%"),
            }
        self.exporter.observe_interval(interval, lost)
        return values

    def close(self) -> None:
        self.exporter.close()
