"""Results of a run or an evaluation as text."""

from __future__ import annotations

from typing import Any


def eval_text(result: dict[str, Any]) -> str:
    """One line for `hvdtrain eval`, and one for its page."""
    from hvdtrain.report.text import views_text

    page = (
        f"\n{result['html']}  (calibration error {result['ece']:.4f})" if "html" in result else ""
    )
    return (
        f"top-1 {result['top1']:.4f}  top-5 {result['top5']:.4f}  loss {result['loss']:.4f}  "
        f"({result['images']:,} images{views_text(result['views'])}, {result['checkpoint']}){page}"
    )


def summary_text(summary: dict[str, Any]) -> str:
    """The last lines of `hvdtrain train`: the contents of `summary.json` that matter most."""
    rows = []
    if "top1" in summary:
        from hvdtrain.report.text import views_text

        views = views_text(summary.get("views"))
        rows.append(("top-1", f"{summary['top1']:.4f}  (top-5 {summary['top5']:.4f}){views}"))
    speed = f"{summary['images_per_second']:,.0f} on {summary['world_size']} ranks"
    rows += [("images/s", speed), *_efficiency(summary), *_noise(summary), *_times(summary)]
    rows.append(("files", summary["run_dir"]))
    return "\n".join(f"{name:<18}  {text}" for name, text in rows)


def _times(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The time of the run; after a resume also that of this attempt, each in a row of its own."""
    trained, attempts = summary["train_seconds"], summary["attempts"]
    if attempts == 1:
        return [("time", f"{trained:.1f} s training, {summary['wall_seconds']:.1f} s in total")]
    return [
        (
            "this attempt",
            f"{summary['attempt_train_seconds']:.1f} s training, "
            f"{summary['wall_seconds']:.1f} s in total",
        ),
        (
            f"all {attempts} attempts",
            f"{trained:.1f} s training, {summary['run_wall_seconds']:.1f} s in total, "
            "without the pauses between them",
        ),
    ]


def _efficiency(summary: dict[str, Any]) -> list[tuple[str, str]]:
    from hvdtrain.report.text import efficiency_text

    if summary["scaling_efficiency"] is None:
        return []
    lost = sorted(summary["lost_time"].items(), key=lambda item: -item[1])
    causes = ", ".join(f"{cause} {share:.0%}" for cause, share in lost if share >= 0.01)
    text = efficiency_text(summary["scaling_efficiency"])
    return [("scaling efficiency", f"{text}  (lost to {causes})" if causes else text)]


def _noise(summary: dict[str, Any]) -> list[tuple[str, str]]:
    if not (noise := summary["noise_scale"]):
        return []
    text = (
        f"{noise['images']:,.0f} images; the batch was {noise['batch']:,}: a batch twice as large "
        f"needs {noise['doubling_steps']:.0%} of the steps and {noise['doubling_images']:.0%} of "
        "the images"
    )
    return [("noise scale", text)]
