"""A run that reports but does not train, with any number of ranks, for the live page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.telemetry.live import Live
from hvdtrain.telemetry.lost_time import LostTime, lost_time, sentence
from hvdtrain.telemetry.meter import BadCounts, Interval
from hvdtrain.telemetry.prometheus import Exporter
from hvdtrain.telemetry.reports import Eval, Measured, Scaling, Train
from tests.launch import free_port

EPOCHS, PER_EPOCH, STEPS = 16, 25, 10
"""Epochs of the run, reports of each, and steps of a report."""
WORKER_STEP_S = 0.2


class FakeRun:
    """Makes the reports of a run for an exporter of rank 0 with its live page."""

    def __init__(self, ranks: int, **metrics: Any) -> None:
        self.hosts = [f"node{rank // 8:02}" for rank in range(ranks)]
        settings = Metrics(port=free_port(), **metrics)
        self.cfg = Config(name="fake", phases=[Phase(epochs=EPOCHS)], metrics=settings)
        self.live = Live("imagenet-20261121-054741", "resnet50", self.hosts)
        self.exporter = Exporter(self.cfg, Solo(), self.live)
        self.address = f"http://127.0.0.1:{self.exporter.endpoint.port}/"
        self._rng = np.random.default_rng(0)
        self.reports = 0

    def advance(self, reports: int = 1) -> None:
        """Make more reports; every fourth epoch one rank is slow."""
        for _ in range(reports):
            self.reports += 1
            epoch = self.reports / PER_EPOCH
            step = self.reports * STEPS
            self.exporter.write(self._train(epoch, step))
            if self.reports % PER_EPOCH == 0:
                top1 = 0.76 * (1 - math.exp(-epoch / 4))
                loss = 2.6 - 2.2 * top1
                self.exporter.write(Eval(epoch, step, 50000, loss, top1, top1**0.4))

    def _train(self, epoch: float, step: int) -> Train:
        size, batch = (128, 1024) if epoch <= 6 else (224, 512) if epoch <= 13 else (288, 256)
        done, noise = epoch / EPOCHS, self._rng.normal()
        interval, lost = self._steps(epoch, noise)
        self.exporter.observe_interval(interval, lost)
        return Train(
            step=step,
            epoch=epoch,
            epochs=EPOCHS,
            progress=done,
            eta_s=(EPOCHS - epoch) * PER_EPOCH * STEPS * WORKER_STEP_S,
            phase=0 if epoch <= 6 else 1 if epoch <= 13 else 2,
            image_size=size,
            batch_per_worker=batch // 8,
            global_batch_size=batch,
            total_samples=step * batch,
            lr=2.0 * min(epoch / 2, (EPOCHS - epoch) / 14),
            momentum=0.9,
            gradient_norm=None,
            skipped_updates=None,
            loss_scale=None,
            measured=interval.measured,
            gradient_noise_scale=800 + 300 * epoch + 60 * noise,
            scaling=self._scaling(lost),
        )

    def _steps(self, epoch: float, noise: float) -> tuple[Interval, LostTime | None]:
        ranks = len(self.hosts)
        shape = (ranks, STEPS)
        data_s = np.maximum(0, self._rng.normal(0.004, 0.004, shape))
        ready = data_s + WORKER_STEP_S + self._rng.gamma(1.0, 0.004, shape)
        if int(epoch) % 4 == 3:
            ready[ranks - 1] += 0.06
        wait_s = ready.max(axis=0) + 0.012 - ready
        step_s, zeros = ready + wait_s, np.zeros(ranks)
        samples, seconds = 512.0 * STEPS, float(step_s[0].sum())
        measured = Measured(
            loss=1.2 + 5.7 * math.exp(-epoch / 3) + 0.05 * noise,
            top1=0.72 * (1 - math.exp(-epoch / 5)) + 0.005 * noise,
            top5=0.9 * (1 - math.exp(-epoch / 3)),
            samples=samples,
            seconds=seconds,
            images_per_second=samples / seconds,
            step_seconds=float(step_s.mean()),
            network_bytes_per_second=0.0,
            data_wait_ratio=float(data_s.mean() / step_s.mean()),
            comm_wait_ratio=float(wait_s.mean() / step_s.mean()),
            bad_samples=0.0,
            read_retries=0.0,
        )
        bad = BadCounts(0, 0)
        interval = Interval(measured, bad, False, [], step_s, data_s, wait_s, zeros, zeros)
        ideal_s = WORKER_STEP_S * STEPS
        return interval, lost_time(step_s, data_s, wait_s, ideal_s) if ranks > 1 else None

    def _scaling(self, lost: LostTime | None) -> Scaling:
        if lost is None:
            return Scaling()
        efficiency = lost.ideal_s / lost.seconds
        return Scaling(
            efficiency=efficiency,
            efficiency_so_far=efficiency,
            efficiency_ceiling=0.97,
            lost=lost.ratios,
            cause=lost.cause,
            straggler=lost.straggler if lost.cause == "straggling" else None,
            explanation=sentence(lost, self.hosts, "the link allows an efficiency of 97%"),
        )

    def close(self) -> None:
        self.exporter.close()
