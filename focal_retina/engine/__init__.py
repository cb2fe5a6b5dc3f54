from .command_line import add_data_arguments, exit_status
from .precision import AutocastTrainer
from .setup import UserError, prepare_process, setup_config, user_errors
from .trainer import Trainer

__all__ = [
    "AutocastTrainer",
    "Trainer",
    "UserError",
    "add_data_arguments",
    "exit_status",
    "prepare_process",
    "setup_config",
    "user_errors",
]
