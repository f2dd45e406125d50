"""Search hyper-parameters with Optuna: every trial is a run of ``itmkit fit``.

Run: pip install 'itmkit[optuna]', then
python examples/sweep.py mate/shapes 20 --trainer.max_epochs=5
The study is in sweep.db: the same command goes on, and several processes may share it.
"""

import json
import sys
from pathlib import Path

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer

from itmkit.cli import main as itmkit

trial: optuna.Trial | None = None  # the one that is running


class Pruning(Callback):
    """Stop a run that is worse than the others were at that step."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get("val/rsum")
        if trial is None or value is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        trial.report(float(value), trainer.global_step)
        trainer.should_stop |= trial.should_prune()


def objective(this: optuna.Trial, config: str, options: tuple[str, ...]) -> float:
    global trial
    trial, name = this, f"sweep-{this.number:03d}"
    rate = this.suggest_float("lr", 1e-4, 1e-2, log=True)
    decay = this.suggest_float("weight_decay", 1e-4, 1e-1, log=True)
    words = ["fit", f"--config={config}", f"--name={name}", "--trainer.callbacks+=sweep.Pruning"]
    words += [f"--model.optimizer.lr={rate}", f"--model.optimizer.weight_decay={decay}"]
    try:
        itmkit([*words, *options])
    except SystemExit as error:  # of which it has printed the reason: a rate that is too high
        raise RuntimeError(name) from error
    if this.should_prune():
        raise optuna.TrialPruned
    metrics = json.loads(Path("runs", name, "latest/metrics.json").read_text())
    return float(metrics["val/rsum"])


def main(config: str, trials: str = "20", *options: str) -> optuna.Study:
    kept = {"study_name": "sweep", "storage": "sqlite:///sweep.db", "load_if_exists": True}
    study = optuna.create_study(direction="maximize", **kept)
    study.optimize(lambda this: objective(this, config, options), int(trials), catch=RuntimeError)
    print(f"best: {study.best_value:.1f} in runs/sweep-{study.best_trial.number:03d}")
    return study


if __name__ == "__main__":
    import sweep  # by its own name, which the configuration of a run has

    sweep.main(*sys.argv[1:])
