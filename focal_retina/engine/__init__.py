from .precision import AutocastTrainer
from .setup import UserError, prepare_process, setup_config, user_errors
from .trainer import Trainer

__all__ = [
    "AutocastTrainer",
    "Trainer",
    "UserError",
    "prepare_process",
    "setup_config",
    "user_errors",
]
