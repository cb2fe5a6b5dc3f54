from .checkpoint import SafeCheckpointer
from .interrupt import exit_status_of, training_errors
from .launch import exit_status, launch_training
from .precision import AutocastTrainer, as_in_main_process
from .resume import only_training_in
from .setup import (
    UserError,
    check_config,
    check_output_dir,
    load_config,
    prepare_process,
    setup_config,
    user_errors,
)
from .trainer import Trainer

__all__ = [
    "AutocastTrainer",
    "SafeCheckpointer",
    "Trainer",
    "UserError",
    "as_in_main_process",
    "check_config",
    "check_output_dir",
    "exit_status",
    "exit_status_of",
    "launch_training",
    "load_config",
    "only_training_in",
    "prepare_process",
    "setup_config",
    "training_errors",
    "user_errors",
]
