"""The numbers of metrics.json to Weights & Biases, too: train_net.py --import THIS_FILE …

The run's id is OUTPUT_DIR, so that a resumed training goes on with its run: another training needs
another folder."""

import wandb
from detectron2.utils.events import EventWriter, get_event_storage

from focal_retina import engine


class WandbWriter(EventWriter):
    def __init__(self, cfg):
        name = cfg.OUTPUT_DIR.strip("/").replace("/", "-")
        self._run = wandb.init(id=name, resume="allow", config={"yaml": cfg.dump()})
        self._last = -1

    def write(self):  # in the main process, every 20 iterations and at the end
        numbers = get_event_storage().latest_with_smoothing_hint(20).items()
        for step in sorted({x for _, (_, x) in numbers if x > self._last}):
            self._run.log({name: value for name, (value, x) in numbers if x == step}, step=step)
            self._last = step

    def close(self):
        self._run.finish()


class WandbTrainer(engine.Trainer):
    def build_writers(self):
        return [*super().build_writers(), WandbWriter(self.cfg)]


engine.Trainer = WandbTrainer  # what train_net.py trains with
