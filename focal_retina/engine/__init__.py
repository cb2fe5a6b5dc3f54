from .checkpoint import SafeCheckpointer
from .command_line import add_data_arguments, exit_status
from .interrupt import exit_status_of
from .launch import launch_training
from .precision import AutocastTrainer, as_in_main_process
from .setup import UserError, load_config, prepare_process, setup_config, user_errors
from .trainer import Trainer

__all__ = [
    "AutocastTrainer",
    "SafeCheckpointer",
    "Trainer",
    "UserError",
    "add_data_arguments",
    "as_in_main_process",
    "exit_status",
    "exit_status_of",
    "launch_training",
    "load_config",
    "prepare_process",
    "setup_config",
    "user_errors",
]
