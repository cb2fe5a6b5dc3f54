from .precision import AutocastTrainer
from .setup import UserError, setup_config, user_errors
from .trainer import Trainer

__all__ = ["AutocastTrainer", "Trainer", "UserError", "setup_config", "user_errors"]
