"""Folders as runs leave them, for reports."""

import json

from parle_hpc.settings import load, write


def write_run(folder, errors, *arguments, seed=0, finished=True):
    """A run's folder with validations of the given errors at steps 25, 50, ..., 2 s a round."""
    folder.mkdir(parents=True)
    settings = load([*arguments, "--run.seed", str(seed)])
    settings.replicas = settings.replicas or 1
    write(settings, folder / "config.toml")
    samples = 25 * settings.data.batch_size * settings.replicas
    events = [{"event": "start", "seconds": 0, "round": 0, "step": 0, "passes": 0, "ranks": 3}]
    for t, error in enumerate(errors):
        common = {"seconds": 2.0 * (t + 1), "round": t, "step": 25 * (t + 1), "passes": 25 * (t + 1) / 100}
        took = {"coupling_seconds": 0.01, "coupling_wait_seconds": 0.005, "samples_per_second": samples / 1.01}
        took["gradient_bytes_sent" if settings.replicas == 1 else "coupling_bytes_sent"] = 4e6 / settings.replicas
        events.append({"event": "round", **common, **took})
        events.append({"event": "validate", **common, "val_error": error, "train_error": error / 2})
    events[-1]["replica_error"] = [errors[-1] + 0.1, errors[-1] + 0.3]
    if finished:
        events.append({**common, "event": "end"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder
